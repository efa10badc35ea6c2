"""The configuration: `pm.toml` and the environment to frozen sections, with every violation in one message.

The docstring under each field is its documentation; `pm init` writes the same text as comments, so the two cannot
differ. Durations are text with a unit ("90s", "10m", "1h", "7d").
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args, get_origin
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    model_validator,
)

from pm.domain import parse_interval
from pm.errors import ConfigError

ENVIRONMENT_PREFIX = "PM_"
DEFAULT_PATH = Path("pm.toml")


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise ValueError('is not a duration; write a number and a unit in quotes, like "90s", "10m", "1h" or "7d"')
    return parse_interval(value)


def duration_text(value: timedelta) -> str:
    """The shortest text that `parse_interval` reads back as this duration (whole seconds)."""
    seconds = int(value.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _lasting(value: object) -> timedelta | None:
    return None if value is None or value == "forever" else _duration(value)


def _lasting_text(value: timedelta | None) -> str:
    return "forever" if value is None else duration_text(value)


def _cron(value: str) -> str:
    from apscheduler.triggers.cron import CronTrigger

    try:
        CronTrigger.from_crontab(value)
    except ValueError as error:
        raise ValueError(f"is not a cron line ({error}); write five fields, like '0 3 * * sun'") from None
    return value


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError("is not a time zone; write a name like UTC or Europe/Berlin") from None
    return value


Duration = Annotated[timedelta, BeforeValidator(_duration), PlainSerializer(duration_text)]
Lasting = Annotated[timedelta | None, BeforeValidator(_lasting), PlainSerializer(_lasting_text)]
"""A duration, or "forever"."""
Cron = Annotated[str, AfterValidator(_cron)]
TimeZone = Annotated[str, AfterValidator(_timezone)]
TcpPort = Annotated[int, Field(ge=0, le=65535)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=False)

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: Any) -> Any:
        """A secret `x` may be given as `x_file`, so that it stands in no configuration and no environment."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name, field in cls.model_fields.items():
            path = values.get(f"{name}_file")
            if field.annotation is SecretStr and path:
                try:
                    values[name] = Path(path).read_text(encoding="utf-8").strip()
                except OSError as error:
                    raise ValueError(
                        f"{name}_file {path} cannot be read ({error.strerror}); mend path or rights"
                    ) from None
        return values


class PlantSection(Section):
    """The plant."""

    name: str = "plant"
    """Name of the plant, shown on the dashboard."""
    timezone: TimeZone = "UTC"
    """Time zone of schedules and of the times that people see. Stored times are UTC."""
    interval: Duration = timedelta(hours=1)
    """Interval that a reading summarises, and the step of the forecaster: "10m", "1h", "1d"."""


class ClockSection(Section):
    """Plant time."""

    source: Literal["wall", "feed"] = "wall"
    """wall: the machine's clock. feed: the clock messages of a replay or a simulation that runs faster than time."""
    grace: Duration = timedelta(minutes=2)
    """How long to wait for readings of an interval that has just ended before assessing it (wall only)."""
    topic: str = "pm/clock"
    """Topic of the clock messages of a replay or a simulation (feed only)."""


class StoreSection(Section):
    """Where readings are stored."""

    kind: Literal["embedded", "influxdb"] = "embedded"
    """embedded: a file on this machine, no server needed. influxdb: InfluxDB 1.8, 2.x or 3."""
    path: Path = Path("data/readings.db")
    """File of the embedded store."""
    url: str = "http://127.0.0.1:8086"
    """Address of InfluxDB."""
    bucket: str = "pm"
    """Bucket (database) of InfluxDB."""
    org: str = ""
    """Organisation of InfluxDB 2.x; empty for 1.8 and 3."""
    token: SecretStr = SecretStr("")
    """Token of InfluxDB; for 1.8 it is "user:password". Better: token_file."""
    token_file: str = ""
    """File that holds the token."""
    verify_tls: bool = True
    """Verify the server's certificate."""
    ca_file: str = ""
    """Certificate authority that signed the server's certificate; empty for the system's authorities."""
    timeout: Duration = timedelta(seconds=30)
    """How long a request may take."""
    retention: Lasting = None
    """How long readings are kept, as "400d", or "forever"; events stay. InfluxDB is told when pm makes the database."""


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


class IngestSection(Section):
    """From messages to stored readings."""

    batch: Annotated[int, Field(ge=1)] = 5000
    """Messages stored in one transaction at most."""
    flush: Annotated[int, Field(ge=1)] = 200
    """Milliseconds that a reading waits for its batch at most."""
    queue: Annotated[int, Field(ge=1)] = 20000
    """Messages held in memory at most; beyond that the broker is left waiting."""
    spool_limit: Annotated[int, Field(ge=0)] = 0
    """MiB of messages kept on disk (beside models.dir) while the store is away; 0: none, they stay with the broker."""
    max_future: Duration = timedelta(minutes=10)
    """Readings dated further ahead of the machine's clock are dead letters (not with clock.source = "feed")."""


class RecordsSection(Section):
    """The service's own records: alerts, forecasts, models, users."""

    url: str = "sqlite:///data/records.db"
    """SQLAlchemy address. PostgreSQL: postgresql+pg8000://user@host/pm, with the extra pm[postgres] installed."""
    password: SecretStr = SecretStr("")
    """Password of the database, where it needs one. Better: password_file."""
    password_file: str = ""
    """File that holds the password."""
    keep_forecasts: Duration = timedelta(days=400)
    """How long issued forecasts are kept."""


class ModelsSection(Section):
    """Trained forecasters."""

    dir: Path = Path("data/models")
    """Folder of model artefacts."""


class AssessSection(Section):
    """The scheduled assessment: one forecast per asset, and what makes it abstain."""

    cron: Cron = "0 * * * *"
    """When to assess, as a cron line in plant time."""
    stale_after: Duration = timedelta(hours=6)
    """An asset whose last reading is older abstains: stale."""
    runtime: Literal["auto", "onnx", "torch"] = "auto"
    """What runs the model: ONNX Runtime where the model holds an ONNX form and no GPU is used, else torch."""
    min_history: Duration = timedelta(hours=24)
    """An asset with less history abstains: too little history."""
    off_points: tuple[str, ...] = ()
    """Points that are near zero when an asset is switched off; an asset off for off_after abstains. Empty: never."""
    off_below: float = 1e-3
    """An off point at or under this reads as off (in the point's unit)."""
    off_after: Duration = timedelta(hours=24)
    """How long all off points must read off before the asset abstains."""


class AlertsSection(Section):
    """From forecasts to alerts."""

    budget: Annotated[float, Field(gt=0.0)] = 0.2
    """Alert budget: false alerts per asset-month that people will bear. The threshold follows from it."""
    on_delay: Annotated[int, Field(ge=1)] = 1
    """Assessments in a row above the threshold before an alert is raised; the threshold is found with them."""
    off_delay: Annotated[int, Field(ge=1)] = 12
    """Assessments in a row below the cleared level before an alert clears."""
    deadband: Share = 0.5
    """An alert clears under threshold x (1 - deadband), so that a probability at the threshold does not flutter."""
    suppress_after_maintenance: Duration = timedelta(hours=24)
    """No new alert of an asset for so long after its maintenance or failure."""
    minimum_lead: Duration = timedelta(hours=1)
    """A warning later than this before the failure counts as missed."""


class TrainSection(Section):
    """Training a forecaster."""

    context: Annotated[int, Field(ge=8)] = 168
    """Steps of history that one forecast sees one by one."""
    life: Annotated[int, Field(ge=8)] = 168
    """Steps that the summaries of an asset's life reach back; every forecast reads as many, where context is less."""
    condition_points: tuple[str, ...] = ()
    """Points that tell of the operating condition, in each of which the others are normalised; found when empty."""
    patch: Annotated[int, Field(ge=1)] = 6
    """Steps that one token of the transformer covers; divides context."""
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 128
    """Width of the transformer."""
    layers: Annotated[int, Field(ge=1)] = 3
    """Layers of the transformer."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads; divides width."""
    dropout: Share = 0.1
    """Dropout in training."""
    point_dropout: Share = 0.1
    """Share of points hidden at random in training, so that a lost sensor degrades a forecast and does not break it."""
    members: Annotated[int, Field(ge=1, le=16)] = 1
    """Networks trained from different seeds, whose answers are averaged; each takes its share of max_minutes."""
    epochs: Annotated[int, Field(ge=1)] = 20
    """Passes over the history at most; training stops earlier when the validation slice no longer improves."""
    patience: Annotated[int, Field(ge=1)] = 6
    """Epochs without improvement before training stops."""
    max_minutes: Annotated[float, Field(gt=0.0)] = 20.0
    """Minutes of training at most; the best weights so far are kept."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Windows in one optimiser step."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Parts that a batch is computed in, where memory is short."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.02
    """Weight decay of AdamW."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of the forward pass; auto takes what the device is made for and says so."""
    onnx: bool = True
    """Keep the network as ONNX beside its weights, for ONNX Runtime; takes some ten seconds after training."""
    device: str = "auto"
    """auto, cpu, or a torch device like cuda:0."""
    tf32: bool = True
    """Let fp32 matrix products of a GPU use TF32, which keeps ten bits of the fraction."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the network for training; auto does so on a GPU, where it pays."""
    memory: Literal["auto", "resident", "mapped"] = "auto"
    """Where features are kept: on the device, or mapped from a file; auto maps what half of the memory cannot hold."""
    snapshot: Duration = timedelta(minutes=5)
    """Between two saves of training's own state, from which it goes on after a crash (pm train --resume)."""
    schedule_features: Literal["off", "coarse", "exact"] = "coarse"
    """How finely time since maintenance is seen: exact age can encode a maintenance plan instead of wear."""
    rul_cap: Annotated[int, Field(ge=1)] = 125
    """Remaining life is learned and told up to so many steps."""
    hold_out: Share = 0.3
    """Share of assets kept out of training altogether, for scoring."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """Share of the other assets that stops, calibrates and sets thresholds, on later time where the record allows."""
    seed: int = 0
    """Seed of splits, initial weights and batches."""

    @model_validator(mode="after")
    def _whole_parts(self) -> Self:
        if self.context % self.patch:
            raise ValueError(
                f"context {self.context} is not a whole number of patches of {self.patch}; change one of them"
            )
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} cannot be divided among {self.heads} heads of even size; change one of them"
            )
        return self


class RetrainSection(Section):
    """Retraining on a schedule: a challenger against the champion."""

    enabled: bool = True
    """Retrain on the schedule below."""
    cron: Cron = "0 3 * * sun"
    """When to retrain, as a cron line in plant time."""
    history: Duration = timedelta(days=730)
    """How much history the challenger learns from."""
    judge: Duration = timedelta(days=30)
    """Length of the latest window, seen by neither in training, on which both are judged."""
    min_failures: Annotated[int, Field(ge=1)] = 3
    """Failures that the judging window must hold; with fewer the champion stays."""
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.9
    """Bootstrap confidence over assets that the challenger is better, needed to promote it."""
    warm: bool = False
    """The challenger goes on from the champion with what came since, which takes seconds: for frequent runs."""


class DashboardSection(Section):
    """The web pages."""

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback, put a proxy with TLS before it."""
    port: TcpPort = 8080
    """Port to listen on."""
    secret_key: SecretStr = SecretStr("")
    """Key that signs sessions. Empty: one is made and kept in the records. Better: secret_key_file."""
    secret_key_file: str = ""
    """File that holds the key."""
    session: Duration = timedelta(hours=12)
    """How long a login lasts."""
    secure_cookies: bool = False
    """Send session cookies over HTTPS only; set it behind a proxy with TLS."""


class LogSection(Section):
    """The log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written."""
    format: Literal["text", "json"] = "text"
    """One line of text, or one JSON object a line."""


class Config(Section):
    """The whole configuration."""

    plant: PlantSection = PlantSection()
    clock: ClockSection = ClockSection()
    store: StoreSection = StoreSection()
    mqtt: MqttSection = MqttSection()
    sparkplug: SparkplugSection = SparkplugSection()
    ingest: IngestSection = IngestSection()
    records: RecordsSection = RecordsSection()
    models: ModelsSection = ModelsSection()
    assess: AssessSection = AssessSection()
    alerts: AlertsSection = AlertsSection()
    train: TrainSection = TrainSection()
    retrain: RetrainSection = RetrainSection()
    dashboard: DashboardSection = DashboardSection()
    log: LogSection = LogSection()


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """Read `path` (or `pm.toml` when it exists, else defaults), then let `PM_SECTION__KEY` variables override.

    Relative paths in the file are taken from the file's folder, so that a service unit may start anywhere.
    Raises ConfigError with every violation: the key, its value, where it came from, and the mend.
    """
    environment = os.environ if environment is None else environment
    if path is not None and not path.is_file():
        raise ConfigError(f"{path}: no such file; write one with 'pm init' or name another with --config")
    path = path or (DEFAULT_PATH if DEFAULT_PATH.is_file() else None)
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not TOML: {error}") from None
    from_environment, violations = _overrides(environment)
    for (section, key), value in from_environment.items():
        table = values.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = value
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        violations += [_violation(e, from_environment) for e in error.errors()]
        config = Config()
    if violations:
        place = path or "configuration"
        raise ConfigError("\n".join([f"{place}: {len(violations)} to mend:", *(f"  {v}" for v in violations)]))
    return _anchored(config, path.resolve().parent) if path is not None else config


def _overrides(environment: Mapping[str, str]) -> tuple[dict[tuple[str, str], Any], list[str]]:
    """Values of `PM_SECTION__KEY` variables; lists are written with commas."""
    found: dict[tuple[str, str], Any] = {}
    violations = []
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        section, _, key = name[len(ENVIRONMENT_PREFIX) :].lower().partition("__")
        if section not in Config.model_fields:
            violations.append(f"{name}: no section [{section}]{_nearest(section, Config.model_fields)}")
            continue
        field = _section_class(section).model_fields.get(key)
        is_list = field is not None and get_origin(field.annotation) is tuple
        found[section, key] = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
    return found, violations


def _section_class(name: str) -> type[Section]:
    return cast(type[Section], Config.model_fields[name].annotation)


def _section_at(loc: Sequence[str]) -> type[Section]:
    """The section that a path leads to, through tables in lists: `mqtt.more.0` is one more broker."""
    section = _section_class(loc[0])
    for key in loc[1:]:
        if key in section.model_fields:
            section = _table_class(section.model_fields[key].annotation) or section
    return section


def _table_class(annotation: Any) -> type[Section] | None:
    """The section that a list of tables is made of, None where a field is no such list."""
    of = get_args(annotation)[0] if get_origin(annotation) is tuple else None
    return of if isinstance(of, type) and issubclass(of, Section) else None


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; do you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _violation(error: Any, from_environment: Mapping[tuple[str, str], Any]) -> str:
    """One line for a person from one of pydantic's errors; the value of a secret is never shown."""
    loc = [str(part) for part in error["loc"]]
    key = ".".join(loc)
    variable = f"{ENVIRONMENT_PREFIX}{'__'.join(loc[:2]).upper()}"
    where = f" (from {variable})" if tuple(loc[:2]) in from_environment else ""
    if error["type"] == "extra_forbidden":
        if len(loc) == 1:
            return f"{key}: no such section{_nearest(key, Config.model_fields)}"
        return f"{key}: no such key{_nearest(loc[-1], _section_at(loc[:-1]).model_fields)}{where}"
    secret = re.search(r"password|token|secret", loc[-1]) is not None
    value = "" if secret or isinstance(error["input"], dict) else f" = {error['input']!r}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{key}{value}{where}: {message}"


def _anchored(config: Config, folder: Path) -> Config:
    """Relative paths made absolute from the configuration's folder."""
    url = config.records.url
    match = re.fullmatch(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:)(.+)", url)
    return config.model_copy(
        update={
            "store": config.store.model_copy(update={"path": folder / config.store.path}),
            "models": config.models.model_copy(update={"dir": folder / config.models.dir}),
            "records": config.records.model_copy(update={"url": f"{match[1]}{folder / match[2]}"} if match else {}),
        }
    )


def sample() -> str:
    """A commented `pm.toml` with every key at its default: what `pm init` writes."""
    return "\n".join(_sample_lines()) + "\n"


def _sample_lines() -> Iterator[str]:
    yield "# pm: predictive maintenance. Every key stands at its default; change what you need, delete the rest."
    yield "# PM_SECTION__KEY in the environment overrides a key here: PM_STORE__KIND=influxdb."
    for section in Config.model_fields:
        cls = _section_class(section)
        yield ""
        yield f"# {(cls.__doc__ or '').strip()}"
        yield f"[{section}]"
        defaults = cls().model_dump(mode="json")
        tables = [name for name, field in cls.model_fields.items() if _table_class(field.annotation)]
        for name, field in cls.model_fields.items():
            if name in tables:
                continue
            yield f"# {field.description}{_choices(field.annotation)}"
            value = "" if field.annotation is SecretStr else defaults[name]
            yield f"{'# ' if field.annotation is SecretStr else ''}{name} = {_toml(value)}"
        for name in tables:
            yield f"# {cls.model_fields[name].description}"
            yield f"# [[{section}.{name}]]"


def _choices(annotation: Any) -> str:
    return f" One of: {', '.join(get_args(annotation))}." if get_origin(annotation) is Literal else ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return str(value)
