"""Values of Sparkplug B metrics: every data type to a number, or to nothing where it is none. Pure.

Booleans are 0 and 1, a DateTime is its milliseconds since the epoch. Integers come as unsigned fields and negative ones
as their two's complement, in 32 bits from most senders and in the type's own width from some; both are read. Beyond
2^53 an integer is the nearest double. Texts, bytes, files, arrays, data sets and templates are no readings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from connectors.sparkplug_schema import DataType


class Metric(NamedTuple):
    """How data of one metric is read."""

    point: str | None
    """None where it is passed over."""
    attribute: str = ""
    """The field of the payload that holds its value."""
    reader: Callable[[Any], float | None] | None = None
    """The field's value as a number, None where it is out of the type's range; absent where it is one already."""


PASSED_OVER: Final = Metric(None)
FIELDS: Final = ("int_value", "long_value", "float_value", "double_value", "boolean_value")
"""Those that hold numbers."""
_OTHER: Final = "string_value"
"""Stands for every field that holds none."""


def _signed(bits: int) -> Callable[[int], float | None]:
    width, half = 1 << bits, 1 << (bits - 1)
    sent = 1 << max(bits, 32)

    def read(value: int) -> float | None:
        if value < half:
            return float(value)
        if value < width:
            return float(value - width)
        return float(value - sent) if sent - half <= value < sent else None

    return read


def _unsigned(bits: int) -> Callable[[int], float | None]:
    limit = 1 << bits
    return lambda value: float(value) if value < limit else None


_NUMBERS: Final[dict[int, tuple[str, Callable[[Any], float | None] | None]]] = {
    DataType.INT8: ("int_value", _signed(8)),
    DataType.INT16: ("int_value", _signed(16)),
    DataType.INT32: ("int_value", _signed(32)),
    DataType.INT64: ("long_value", _signed(64)),
    DataType.UINT8: ("int_value", _unsigned(8)),
    DataType.UINT16: ("int_value", _unsigned(16)),
    DataType.UINT32: ("int_value", _unsigned(32)),
    DataType.UINT64: ("long_value", _unsigned(64)),
    DataType.FLOAT: ("float_value", None),
    DataType.DOUBLE: ("double_value", None),
    DataType.BOOLEAN: ("boolean_value", float),
    DataType.DATETIME: ("long_value", _unsigned(64)),
}
_ALIKE: Final = {
    "int_value": "long_value",
    "long_value": "int_value",
    "float_value": "double_value",
    "double_value": "float_value",
}
"""Fields of which a sender may take the one for the other without a change of meaning (UInt32 as a long, for one)."""


def metric_of(name: str, datatype: int) -> Metric | None:
    """How a metric of this data type is read; passed over where the type holds no number, None for an unknown type."""
    if datatype in _NUMBERS:
        return Metric(name, *_NUMBERS[datatype])
    return Metric(None, _OTHER) if DataType.UNKNOWN < datatype <= DataType.DATETIME_ARRAY else None


def as_sent(metric: Any, known: Metric) -> Metric:
    """How data of a metric is read, if it is sent as its birth is: of two fields that hold the same, the one used."""
    carried = metric.WhichOneof("value")
    if known.point is None and not known.attribute and carried is not None:
        return known._replace(attribute=carried if carried in FIELDS else _OTHER)
    alike = carried is not None and carried == _ALIKE.get(known.attribute)
    return known._replace(attribute=carried) if alike else known


def carries_value(metric: Any) -> bool:
    return metric.WhichOneof("value") is not None


def read_value(metric: Any, known: Metric) -> float | str:
    """The value of a metric as a number, or what is wrong with it in words."""
    carried = metric.WhichOneof("value")
    if carried is None:
        return f"{known.point} has no value"
    if carried not in (known.attribute, _ALIKE.get(known.attribute)):
        return f"{known.point} comes as {carried}, and was born as one of {known.attribute}"
    sent = getattr(metric, carried)
    value = sent if known.reader is None else known.reader(sent)
    if value is None:
        return f"{known.point} is {sent}, out of its data type's range"
    if not math.isfinite(value):
        return f"{known.point} is {value}, not a number that can be kept"
    return float(value)


def property_of(metric: Any, key: str) -> int | float | bool | str | None:
    """The value of a metric's property; None where it has none, or where keys and values do not pair."""
    properties = metric.properties
    if len(properties.keys) != len(properties.values):
        return None
    for name, value in zip(properties.keys, properties.values, strict=True):
        if name == key:
            carried = value.WhichOneof("value")
            found = None if carried is None else getattr(value, carried)
            return found if isinstance(found, int | float | bool | str) else None
    return None
