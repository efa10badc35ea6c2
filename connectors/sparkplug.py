"""Sparkplug B payloads: births to tables of metrics, data to readings. Pure.

Whatever the bytes are, the end is defined: readings, faults in words (the dead letter's reason), or a PayloadError.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import DecodeError

from connectors.sparkplug_columns import CHECKED, Plans
from connectors.sparkplug_schema import Columns, DataType, Payload
from connectors.sparkplug_values import PASSED_OVER, Metric, as_sent, carries_value, metric_of, property_of, read_value
from connectors.topics import name_fault
from connectors.values import PayloadError, check_point, epoch_us, short
from pm.domain import Point

MAX_BYTES: Final = 16 << 20
"""Longest payload that is read; births of large nodes are long."""
MAX_METRICS: Final = 100_000
_DAMAGED: Final = "not a Sparkplug B payload: the protobuf is damaged"
_BD_SEQ: Final = "bdSeq"
_CONTROLS: Final = (_BD_SEQ, "Node Control/", "Device Control/")
"""Metrics about the session itself, by their beginnings; they are no points."""


def parse_payload(payload: bytes) -> Any:
    """The protobuf message. Raises PayloadError."""
    if len(payload) > MAX_BYTES:
        raise PayloadError(f"the payload is {len(payload)} bytes; at most {MAX_BYTES} are read")
    try:
        parsed = Payload.FromString(payload)
    except DecodeError:
        raise PayloadError(_DAMAGED) from None
    if len(parsed.metrics) > MAX_METRICS:
        raise PayloadError(f"the payload has {len(parsed.metrics)} metrics; at most {MAX_METRICS} are read")
    if parsed.body and not parsed.metrics:
        raise PayloadError("a compressed payload; let the edge node send it uncompressed")
    return parsed


def parse_columns(payload: bytes) -> Any:
    """The payload by columns, for `read_data`. Raises PayloadError."""
    if len(payload) > MAX_BYTES:
        raise PayloadError(f"the payload is {len(payload)} bytes; at most {MAX_BYTES} are read")
    try:
        return Columns.FromString(payload)
    except DecodeError:
        raise PayloadError(_DAMAGED) from None


def sequence_number(parsed: Any) -> int:
    """`seq` of a payload, 0 to 255. Raises PayloadError where it is absent or out of range."""
    seq: int = parsed.seq
    if (not seq and not parsed.HasField("seq")) or seq > 255:
        raise PayloadError(f"seq is {seq if parsed.HasField('seq') else 'absent'}, not a number from 0 to 255")
    return seq


def death_number(parsed: Any) -> int | None:
    """The bdSeq of an NBIRTH or NDEATH, that joins the two; None where it carries none."""
    for metric in parsed.metrics:
        if metric.name == _BD_SEQ:
            return int(metric.long_value or metric.int_value) if carries_value(metric) else None
    return None


@dataclass(frozen=True, slots=True)
class MetricTable:
    """The metrics of one node or device as its latest birth names them."""

    by_alias: dict[int, Metric] = field(default_factory=dict)
    by_name: dict[str, Metric] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    """Those with a unit (the property engUnit)."""
    faults: tuple[str, ...] = ()
    """Metrics that cannot be points, and why."""
    plans: Plans = field(init=False)
    """How its data is read by columns."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "plans", Plans(self.by_alias, self.by_name))


def read_birth(parsed: Any) -> MetricTable:
    """The table that a birth makes. A metric that cannot be a point has an entry too, so that data finds and passes
    over it."""
    by_alias: dict[int, Metric] = {}
    by_name: dict[str, Metric] = {}
    points: list[Point] = []
    faults: list[str] = []
    for born in parsed.metrics:
        name = born.name
        try:
            metric = _born(born, name)
        except PayloadError as error:
            faults.append(str(error))
            metric = PASSED_OVER
        metric = as_sent(born, metric)
        if born.HasField("alias"):
            if born.alias in by_alias:
                faults.append(f"alias {born.alias} is born twice; {short(name)} is found by its name alone")
            else:
                by_alias[born.alias] = metric
        if type(name) is str:
            by_name[name] = metric
        if metric.point is not None and born.HasField("properties"):
            unit = property_of(born, "engUnit")
            if type(unit) is str and unit and name_fault(unit) is None:
                points.append(Point(metric.point, unit))
    return MetricTable(by_alias, by_name, tuple(points), tuple(faults))


def _born(born: Any, name: Any) -> Metric:
    if fault := name_fault(name):
        raise PayloadError(f"metric {short(name)} {fault}")
    if name.startswith(_CONTROLS):
        return PASSED_OVER
    check_point(name)
    metric = metric_of(name, born.datatype)
    if metric is None:
        raise PayloadError(f"{name} has data type {born.datatype}, which Sparkplug B does not know")
    return metric


@dataclass(slots=True)
class Readout:
    """What a payload says by a table: values by time in microseconds since the epoch, in the order of the payload."""

    values: dict[int, dict[str, float]]
    faults: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    """Metrics that the table does not have: aliases as "alias 7", names as they are."""
    unfit: int = 0
    """Values whose quality is bad or stale; they are no readings."""


def read_metrics(
    parsed: Any, table: MetricTable, received_us: int, *, latest_us: int | None = None, guess: bool = False
) -> Readout:
    """The values of a birth or of data, metric by metric.

    received_us: the time of values where neither metric nor payload has one. latest_us: values dated later are faults;
    None where plant time is not now. guess: read a metric that the table does not have by its own name and data type
    (or by a float, a double or a boolean, which need none).

    The same metric twice at one time with two values is a fault; the first stands.
    """
    return _dated(_read_with_care(parsed, table, guess), parsed.timestamp, received_us, latest_us)


def read_data(
    columns: Any, raw: bytes, table: MetricTable, received_us: int, *, latest_us: int | None = None
) -> Readout:
    """As `read_metrics`, for data: by columns where that is possible. raw: the payload's bytes. Raises PayloadError."""
    plans = table.plans
    values = plans.read(columns, len(raw)) if plans.trusted else None
    if values is not None and plans.checked >= CHECKED:
        return _dated(Readout(values), columns.timestamp, received_us, latest_us)
    readout = _read_with_care(parse_payload(raw), table, False)
    if values is not None:
        plans.trusted = readout == Readout(values)
        plans.checked += 1
    return _dated(readout, columns.timestamp, received_us, latest_us)


def _dated(readout: Readout, payload_ms: int, received_us: int, latest_us: int | None) -> Readout:
    """Times in microseconds in place of the metrics' own stamps."""
    timed: dict[int, dict[str, float]] = {}
    faults = list(readout.faults)
    for stamp_ms, named in readout.values.items():
        try:
            time_us = _time_us(stamp_ms or payload_ms, received_us, latest_us)
        except PayloadError as error:
            faults.append(f"{', '.join(list(named)[:3])}: {error}")
            continue
        if time_us not in timed:
            timed[time_us] = named
            continue
        for name, value in named.items():  # one metric with the payload's time, another with the same of its own
            if timed[time_us].setdefault(name, value) != value:
                faults.append(f"{name} has two values at one time: {timed[time_us][name]} and {value}")
    readout.values = timed
    readout.faults = tuple(faults)
    return readout


def _time_us(stamp_ms: int, received_us: int, latest_us: int | None) -> int:
    if not stamp_ms:
        return received_us
    # Sparkplug says milliseconds; by magnitude all the same, so that a sender in other units is not taken for 1970.
    time_us = stamp_ms * 1000 if 100_000_000_000 <= stamp_ms < 100_000_000_000_000 else epoch_us(stamp_ms)
    if latest_us is not None and time_us > latest_us:
        raise PayloadError(
            f"dated {(time_us - received_us) / 1e6:.0f} s ahead of the clock here; set the sender's clock, "
            "or raise ingest.max_future"
        )
    return time_us


def _read_with_care(parsed: Any, table: MetricTable, guess: bool) -> Readout:
    readout = Readout({})
    faults: list[str] = []
    unknown: list[str] = []
    for metric in parsed.metrics:
        known = _find(metric, table, guess)
        if known is None:
            unknown.append(_called(metric))
            continue
        if known.point is None or (metric.is_null and not carries_value(metric)):
            continue
        if metric.HasField("properties") and property_of(metric, "Quality") not in (None, 192):
            readout.unfit += 1
            continue
        value = read_value(metric, known)
        if isinstance(value, str):
            faults.append(value)
            continue
        group = readout.values.setdefault(metric.timestamp, {})
        if group.setdefault(known.point, value) != value:
            faults.append(f"{known.point} has two values at one time: {group[known.point]} and {value}")
    readout.faults = tuple(faults)
    readout.unknown = tuple(unknown)
    return readout


def _find(metric: Any, table: MetricTable, guess: bool) -> Metric | None:
    if metric.HasField("alias") and metric.alias in table.by_alias:
        return table.by_alias[metric.alias]
    name = metric.name
    if type(name) is str and name in table.by_name:
        return table.by_name[name]
    if type(name) is str and name.startswith(_CONTROLS):
        return PASSED_OVER
    if not guess or name_fault(name):
        return None
    datatype = metric.datatype or _EVIDENT.get(metric.WhichOneof("value"), 0)
    try:
        check_point(name)
    except PayloadError:
        return None
    return metric_of(name, datatype) if datatype else None


_EVIDENT: Final = {
    "float_value": DataType.FLOAT,
    "double_value": DataType.DOUBLE,
    "boolean_value": DataType.BOOLEAN,
}


def _called(metric: Any) -> str:
    name = metric.name
    if type(name) is str and name:
        return short(name)
    return f"alias {metric.alias}" if metric.HasField("alias") else "a metric without name and alias"
