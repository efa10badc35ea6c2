"""The Sparkplug B payload as a protobuf message of the official library, described at run time.

There are two views of the same bytes. `Payload` is the definition's own. `Columns` says of the field of metrics that
there is one and that its fields repeat: protobuf merges the metrics of a payload into it, so that all aliases come as
one list, all doubles as another, at a fraction of the cost of asking metric by metric.

Field numbers, types and names are those of the message definition in the Sparkplug 3.0 specification, section 6. Only
what a host of readings looks into is described in full; data sets, templates, nested property sets and extensions are
bytes here, so that whatever they hold is carried past unread and cannot be deep or long enough to matter.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_ONE: Final = _Field.LABEL_OPTIONAL
_MANY: Final = _Field.LABEL_REPEATED


class DataType(IntEnum):
    """What a metric's value is, as its birth says."""

    UNKNOWN = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT = 9
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATETIME = 13
    TEXT = 14
    UUID = 15
    DATASET = 16
    BYTES = 17
    FILE = 18
    TEMPLATE = 19
    PROPERTY_SET = 20
    PROPERTY_SET_LIST = 21
    INT8_ARRAY = 22
    INT16_ARRAY = 23
    INT32_ARRAY = 24
    INT64_ARRAY = 25
    UINT8_ARRAY = 26
    UINT16_ARRAY = 27
    UINT32_ARRAY = 28
    UINT64_ARRAY = 29
    FLOAT_ARRAY = 30
    DOUBLE_ARRAY = 31
    BOOLEAN_ARRAY = 32
    STRING_ARRAY = 33
    DATETIME_ARRAY = 34


_SCALARS: Final = (
    ("int_value", _Field.TYPE_UINT32),
    ("long_value", _Field.TYPE_UINT64),
    ("float_value", _Field.TYPE_FLOAT),
    ("double_value", _Field.TYPE_DOUBLE),
    ("boolean_value", _Field.TYPE_BOOL),
    ("string_value", _Field.TYPE_STRING),
)


def _build() -> tuple[Any, ...]:
    file = descriptor_pb2.FileDescriptorProto(name="pm_sparkplug.proto", package="pm.sparkplug", syntax="proto2")
    payload = file.message_type.add(name="Payload")
    metric = payload.nested_type.add(name="Metric")
    property_set = payload.nested_type.add(name="PropertySet")
    property_value = payload.nested_type.add(name="PropertyValue")

    def add(
        message: Any, number: int, name: str, kind: Any, label: Any = _ONE, of: str = "", within: str = "Payload"
    ) -> Any:
        field = message.field.add(name=name, number=number, type=kind, label=label)
        if of:
            field.type_name = f".pm.sparkplug.{within}.{of}"
        return field

    def add_values(message: Any, first: int, opaque: tuple[str, ...]) -> None:
        """The alternatives of a value, numbered from `first`."""
        message.oneof_decl.add(name="value")
        kinds = (*_SCALARS, *((name, _Field.TYPE_BYTES) for name in opaque))
        for number, (name, kind) in enumerate(kinds, first):
            add(message, number, name, kind).oneof_index = 0

    add(payload, 1, "timestamp", _Field.TYPE_UINT64)
    add(payload, 2, "metrics", _Field.TYPE_MESSAGE, _MANY, "Metric")
    add(payload, 3, "seq", _Field.TYPE_UINT64)
    add(payload, 4, "uuid", _Field.TYPE_STRING)
    add(payload, 5, "body", _Field.TYPE_BYTES)

    add(metric, 1, "name", _Field.TYPE_STRING)
    add(metric, 2, "alias", _Field.TYPE_UINT64)
    add(metric, 3, "timestamp", _Field.TYPE_UINT64)
    add(metric, 4, "datatype", _Field.TYPE_UINT32)
    add(metric, 5, "is_historical", _Field.TYPE_BOOL)
    add(metric, 6, "is_transient", _Field.TYPE_BOOL)
    add(metric, 7, "is_null", _Field.TYPE_BOOL)
    add(metric, 8, "metadata", _Field.TYPE_BYTES)
    add(metric, 9, "properties", _Field.TYPE_MESSAGE, _ONE, "PropertySet")
    add_values(metric, 10, ("bytes_value", "dataset_value", "template_value", "extension_value"))

    add(property_set, 1, "keys", _Field.TYPE_STRING, _MANY)
    add(property_set, 2, "values", _Field.TYPE_MESSAGE, _MANY, "PropertyValue")

    add(property_value, 1, "type", _Field.TYPE_UINT32)
    add(property_value, 2, "is_null", _Field.TYPE_BOOL)
    add_values(property_value, 3, ("propertyset_value", "propertysets_value", "extension_value"))

    columns = file.message_type.add(name="Columns")
    merged = columns.nested_type.add(name="Metrics")
    add(columns, 1, "timestamp", _Field.TYPE_UINT64)
    add(columns, 2, "metrics", _Field.TYPE_MESSAGE, _ONE, "Metrics", "Columns")
    add(columns, 3, "seq", _Field.TYPE_UINT64)
    for number, name, kind in (
        (1, "name", _Field.TYPE_STRING),
        (2, "alias", _Field.TYPE_UINT64),
        (3, "timestamp", _Field.TYPE_UINT64),
        (7, "is_null", _Field.TYPE_BOOL),
        (9, "properties", _Field.TYPE_BYTES),
        *((number, *field) for number, field in enumerate(_SCALARS[:-1], 10)),
    ):
        add(merged, number, name, kind, _MANY)

    # A pool of its own: other packages may describe the same messages in the common one.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"pm.sparkplug.{name}"))
        for name in ("Payload", "Columns")
    )


_CLASSES: Final = _build()
Payload: Final[Any] = _CLASSES[0]
"""The message class; its `FromString` reads a payload, `SerializeToString` writes one."""
Columns: Final[Any] = _CLASSES[1]
"""A payload by columns, for reading."""
