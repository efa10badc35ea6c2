"""The sections of what readings come from: MQTT brokers, payloads of other forms, Sparkplug B."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator

from pm.config.fields import Duration, Section, TcpPort


class MappingSection(Section):
    """Payloads of another form than pm's own: one [[mqtt.mapping]] for each topic template; see docs/ingest.md.

    A path names a place in a payload: "motor.temp", "data.0.v"; it is looked for in the sample, then in the whole.
    """

    topic: str = ""
    """Topic template, with {asset} where the topic names the asset and {point} where it names the point."""
    format: Literal["json", "csv", "lines"] = "json"
    """json, csv (a header or `columns` names the columns), or lines (InfluxDB line protocol)."""
    asset: str = ""
    """How the asset is named out of the topic's parts, as "{line}-{asset}". Empty: as mqtt.asset says."""
    asset_path: str = ""
    """Path of the asset's name in the payload, where the topic does not name it."""
    samples: str = ""
    """Path of the samples (an array or one object). Empty: the payload itself."""
    time: str = "time"
    """Path (column) of the time; absent there, it is the time of receipt."""
    time_format: str = "auto"
    """auto (ISO 8601, or a number by its magnitude), s, ms, us, ns since 1970, or a form like "%d.%m.%Y %H:%M:%S"."""
    time_zone: str = ""
    """Time zone of times that name none, as "Europe/Berlin". Empty: such times are refused."""
    values: str = ""
    """Path of the object of values; nested ones become motor.temp. Empty: `values`, or else the sample."""
    points: Mapping[str, str] = {}
    """Point = path, where only these are wanted."""
    name: str = ""
    """Path (column) of the point's name, where each sample is one value."""
    value: str = "value"
    """Path (column) of that value; also of the value where the topic names the point."""
    quality: str = "quality"
    """Path (column) of the quality, of the sample or an object of one for each point. Absent there, it is good."""
    quality_codes: Literal["opc-da", "opc-ua"] = "opc-da"
    """What numbers mean as a quality: opc-da (192 is good) or opc-ua (0 is good)."""
    ignore: tuple[str, ...] = ()
    """Values to pass over, by the name that they come with: texts, counters."""
    rename: Mapping[str, str] = {}
    """Name as it comes = point."""
    units: Mapping[str, str] = {}
    """Point = rule: "degF -> degC", "psi -> bar", or "* 0.1 - 40" for raw counts."""
    tags: Mapping[str, str] = {}
    """Tags of every asset of this mapping, beside those of the topic's parts."""
    text_numbers: bool = False
    """Accept numbers written as text ("171.2"). CSV is text, and always accepted."""
    booleans: bool = False
    """Accept true as 1 and false as 0."""
    columns: tuple[str, ...] = ()
    """Names of the columns of CSV, "" for one to pass over. None: the first line names them."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """Between the columns of CSV."""
    decimal: Literal[".", ","] = "."
    """Decimal mark of numbers in text."""


class BrokerSection(Section):
    """A further broker that readings come from: one [[mqtt.more]] for each."""

    host: str = ""
    """Name or address of the broker. Empty: an embedded broker is started on the loopback interface."""
    port: TcpPort = 1883
    """Port of the broker; 8883 is usual with TLS. With an embedded broker, 0 takes a free one."""
    version: Literal["auto", "5", "3.1.1"] = "auto"
    """Version of MQTT. auto: 5, and 3.1.1 where the broker refuses 5."""
    username: str = ""
    """User of the broker; empty for none."""
    password: SecretStr = SecretStr("")
    """Password of the broker. Better: password_file."""
    password_file: str = ""
    """File that holds the password."""
    tls: bool = False
    """Speak TLS; the broker's certificate is always verified."""
    ca_file: str = ""
    """Certificate authority that signed the broker's certificate; empty for the system's authorities."""
    cert_file: str = ""
    """Client certificate, where the broker asks for one."""
    key_file: str = ""
    """Key of the client certificate."""
    client_id: str = "pm-ingest"
    """Client id; keep it fixed, because the broker keeps undelivered messages under it. Each process needs its own."""
    share: str = ""
    """Group of a shared subscription ($share), among whose processes the broker divides the messages. Empty: none."""
    takeover_after: Duration = timedelta(seconds=30)
    """When a process of the group has been gone for so long, another takes what the broker kept for it."""
    keepalive: Duration = timedelta(seconds=30)
    """Silence after which the connection counts as dead."""
    silent_after: Duration = timedelta(hours=2)
    """A connection that stands and brings no message for so long is told as silent; a few times the interval."""
    session_expiry: Duration = timedelta(days=7)
    """How long the broker keeps undelivered messages while pm is away."""
    receive_maximum: Annotated[int, Field(ge=1, le=65535)] = 20000
    """Messages that the broker may send before the first is acknowledged (MQTT 5)."""
    transport: Literal["bulk", "paho"] = "bulk"
    """bulk: read and acknowledge many messages at once, several times faster. paho: one by one, as paho does it."""
    readings: tuple[str, ...] = ("plant/{asset}/readings", "plant/{asset}/{point}")
    """Topic templates of readings: JSON objects where {point} is absent, single numbers where it is named."""
    events: tuple[str, ...] = ("plant/{asset}/events",)
    """Topic templates of events."""
    asset: str = "{asset}"
    """How assets are named out of the topic's parts: "{line}-{asset}" where names repeat from line to line."""
    mapping: tuple[MappingSection, ...] = ()
    """Payloads of another form: [[mqtt.mapping]] with topic and what else differs, once for each topic template."""

    @model_validator(mode="after")
    def _mappings_name_topics(self) -> Self:
        for number, mapping in enumerate(self.mapping):
            if not mapping.topic:
                raise ValueError(f'mapping.{number} has no topic; give it a template, as "press/{{asset}}/raw"')
        return self

    @model_validator(mode="after")
    def _share_is_one_level(self) -> Self:
        if any(mark in self.share for mark in "/+#\x00"):
            raise ValueError(f"share {self.share!r} has / + or #; name the group without them")
        return self


class MqttSection(BrokerSection):
    """The MQTT broker that readings come from; further ones stand in [[mqtt.more]], with the same keys each."""

    embedded: Literal["auto", "mosquitto", "rumqttd"] = "auto"
    """Embedded broker: a mosquitto found on this machine, or the rumqttd of iotcore; auto prefers the first."""
    publish: bool = True
    """Publish pm/status, pm/alerts/{asset} and pm/forecasts/{asset}, retained."""
    more: tuple[BrokerSection, ...] = ()
    """Further brokers: [[mqtt.more]] with host and what else differs from the defaults, once for each."""

    @model_validator(mode="after")
    def _further_brokers_are_named(self) -> Self:
        for number, section in enumerate(self.more):
            if not section.host:
                raise ValueError(f"more.{number} names no host; only the first broker may be the embedded one")
        sections: list[BrokerSection] = [self, *self.more]
        places = [(section.host, section.port, section.client_id) for section in sections]
        for host, port, client_id in places:
            if places.count((host, port, client_id)) > 1:
                raise ValueError(f"client_id {client_id!r} stands twice for {host}:{port}; give each its own")
        return self


class SparkplugSection(Section):
    """Sparkplug B edge nodes on the broker of [mqtt], of which pm is a host application."""

    enabled: bool = False
    """Take readings from Sparkplug B edge nodes as well."""
    host_id: str = "pm"
    """Host id, on which edge nodes may wait: spBv1.0/STATE/{host_id} says whether pm is there. Unique on the broker."""
    groups: tuple[str, ...] = ()
    """Groups to take readings from. Empty: all."""
    asset: str = "{device}"
    """Name of a device's asset, of {group}, {node} and {device}: "{node}/{device}" where device ids repeat."""
    node_asset: str = "{node}"
    """Name of an edge node's own asset, of {group} and {node}."""
    nodes: Literal["auto", "always", "never"] = "auto"
    """Whether an edge node's own metrics make it an asset. auto: where it has no devices."""
    reorder_timeout: Duration = timedelta(seconds=5)
    """How long a message waits for those before it (by sequence number) until the edge node is asked for its births."""
    birth_timeout: Duration = timedelta(seconds=30)
    """How long messages wait for the births asked for until they are read without."""

    @model_validator(mode="after")
    def _names_are_levels(self) -> Self:
        for what, names in (("host_id", (self.host_id,)), ("groups", self.groups)):
            for name in names:
                if not name or any(mark in name for mark in "/+#\x00"):
                    raise ValueError(f"{what} {name!r} is empty or has / + or #; write it as it stands in topics")
        for field, template, known in (
            ("asset", self.asset, {"group", "node", "device"}),
            ("node_asset", self.node_asset, {"group", "node"}),
        ):
            parts = re.findall(r"\{([^{}]*)\}", template)
            if not parts or not set(parts) <= known:
                raise ValueError(f"{field} {template!r} is no template of {{{'}, {'.join(sorted(known))}}}")
        return self
