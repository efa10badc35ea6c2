"""An edge node's messages, made by hand: what tests of the host hear, and the benchmark publishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from connectors.sparkplug_schema import DataType, Payload

T0_MS = 1_795_428_000_000
"""2026-11-23T10:00:00Z."""
T0 = T0_MS * 1000

_FIELDS = {
    DataType.FLOAT: "float_value",
    DataType.DOUBLE: "double_value",
    DataType.BOOLEAN: "boolean_value",
    DataType.STRING: "string_value",
    DataType.TEXT: "string_value",
    DataType.BYTES: "bytes_value",
    DataType.INT64: "long_value",
    DataType.UINT64: "long_value",
    DataType.DATETIME: "long_value",
    DataType.DATASET: "dataset_value",
    DataType.TEMPLATE: "template_value",
}


def field_of(datatype: int) -> str:
    return _FIELDS.get(DataType(datatype), "int_value")


def add_metric(payload: Any, *, datatype: int = DataType.DOUBLE, value: Any = None, **fields: Any) -> Any:
    """A metric; `value` goes into the field of its data type, negative integers as 32 or 64 bit two's complement."""
    metric = payload.metrics.add(**fields)
    if value is not None:
        field = field_of(datatype)
        if field in ("int_value", "long_value") and value < 0:
            value += 1 << (32 if field == "int_value" else 64)
        setattr(metric, field, value)
    return metric


def add_property(metric: Any, key: str, **value: Any) -> None:
    metric.properties.keys.append(key)
    metric.properties.values.add(**value)


class Edge:
    """An edge node that counts its messages as the specification has it. Each method gives a topic and a payload."""

    def __init__(self, group: str = "g", node: str = "n", *, bd_seq: int = 0) -> None:
        self.group, self.node, self.bd_seq = group, node, bd_seq
        self.seq = 0
        self.aliases: dict[tuple[str, str], int] = {}

    def topic(self, verb: str, device: str = "") -> str:
        return "/".join(("spBv1.0", self.group, verb, self.node, *([device] if device else [])))

    def nbirth(self, metrics: Mapping[str, Any] | None = None, *, at_ms: int = T0_MS) -> tuple[str, bytes]:
        self.seq = 0
        payload = Payload(timestamp=at_ms, seq=self._next())
        add_metric(payload, name="bdSeq", datatype=DataType.INT64, value=self.bd_seq, timestamp=at_ms)
        payload.metrics[0].datatype = DataType.INT64
        payload.metrics.add(
            name="Node Control/Rebirth", timestamp=at_ms, datatype=DataType.BOOLEAN, boolean_value=False
        )
        self._add_births(payload, "", metrics or {}, at_ms)
        return self.topic("NBIRTH"), payload.SerializeToString()

    def dbirth(
        self, device: str, metrics: Mapping[str, Any], *, at_ms: int = T0_MS, types: Mapping[str, int] | None = None
    ) -> tuple[str, bytes]:
        payload = Payload(timestamp=at_ms, seq=self._next())
        self._add_births(payload, device, metrics, at_ms, types or {})
        return self.topic("DBIRTH", device), payload.SerializeToString()

    def data(
        self,
        device: str,
        values: Mapping[str, Any] | Sequence[tuple[str, Any, int]],
        *,
        at_ms: int = T0_MS,
        datatype: int = DataType.DOUBLE,
        **fields: Any,
    ) -> tuple[str, bytes]:
        """values: by metric name, or (name, value, time of its own in milliseconds)."""
        payload = Payload(timestamp=at_ms, seq=self._next())
        rows = [(n, v, at_ms) for n, v in values.items()] if isinstance(values, Mapping) else values
        for name, value, stamp in rows:
            alias = self.aliases.get((device, name))
            called = {"name": name} if alias is None else {"alias": alias}
            add_metric(payload, datatype=datatype, value=value, timestamp=stamp, **called, **fields)
        return self.topic("DDATA" if device else "NDATA", device), payload.SerializeToString()

    def ddeath(self, device: str, *, at_ms: int = T0_MS) -> tuple[str, bytes]:
        return self.topic("DDEATH", device), Payload(timestamp=at_ms, seq=self._next()).SerializeToString()

    def ndeath(self, bd_seq: int | None = None) -> tuple[str, bytes]:
        payload = Payload(timestamp=T0_MS)
        add_metric(payload, name="bdSeq", datatype=DataType.INT64, value=self.bd_seq if bd_seq is None else bd_seq)
        return self.topic("NDEATH"), payload.SerializeToString()

    def _add_births(
        self, payload: Any, device: str, metrics: Mapping[str, Any], at_ms: int, types: Mapping[str, int] | None = None
    ) -> None:
        for name, value in metrics.items():
            datatype = (types or {}).get(name, DataType.DOUBLE)
            alias = self.aliases.setdefault((device, name), len(self.aliases) + 1)
            add_metric(
                payload, name=name, alias=alias, timestamp=at_ms, value=value, datatype=datatype
            ).datatype = datatype

    def _next(self) -> int:
        seq, self.seq = self.seq, (self.seq + 1) & 255
        return seq
