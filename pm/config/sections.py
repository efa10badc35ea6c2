"""The sections of the configuration and the whole of it; feeds and learning have modules of their own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args, get_origin

from pydantic import Field, SecretStr, model_validator

from pm.config.feeds import MqttSection, SparkplugSection
from pm.config.fields import Cron, Duration, Lasting, Section, Share, TcpPort, TimeZone
from pm.config.learning import RetrainSection, TrainSection


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


class IngestSection(Section):
    """From messages to stored readings."""

    batch: Annotated[int, Field(ge=1)] = 5000
    """Messages stored in one transaction at most."""
    flush: Annotated[int, Field(ge=1)] = 200
    """Milliseconds that a reading waits for its batch at most."""
    queue: Annotated[int, Field(ge=1)] = 20000
    """Messages held in memory at most; beyond that the broker is left waiting."""
    spool_limit: Annotated[int, Field(ge=0)] = 1024
    """MiB of messages kept on disk (beside models.dir) while the store is away; 0: none, they stay with the broker."""
    alert_quiet: Duration = timedelta(minutes=10)
    """A data alert (messages dropped, dead letters) is closed when no more have come for so long; a minute at least."""
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


class MetricsSection(Section):
    """Metrics for Prometheus: at /metrics of the dashboard, and on a port of their own where there is none."""

    port: TcpPort = 0
    """Port of their own in a process with ingest (pm ingest, pm run); each process needs another. 0: none."""
    host: str = "127.0.0.1"
    """Address of that port. Beyond loopback it needs a token, and a proxy with TLS before it."""
    token: SecretStr = SecretStr("")
    """Bearer token that Prometheus shows. Empty: the dashboard's /metrics needs a login. Better: token_file."""
    token_file: str = ""
    """File that holds the token."""

    @model_validator(mode="after")
    def _others_need_a_token(self) -> Self:
        if self.port and self.host not in ("127.0.0.1", "::1", "localhost") and not self.token.get_secret_value():
            raise ValueError(f"host {self.host!r} lets others read the metrics; set metrics.token_file")
        return self


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
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()


def section_class(name: str) -> type[Section]:
    return cast(type[Section], Config.model_fields[name].annotation)


def section_at(loc: Sequence[str]) -> type[Section]:
    """The section that a path leads to, through tables in lists: `mqtt.more.0` is one more broker."""
    section = section_class(loc[0])
    for key in loc[1:]:
        if key in section.model_fields:
            section = table_class(section.model_fields[key].annotation) or section
    return section


def table_class(annotation: Any) -> type[Section] | None:
    """The section that a list of tables is made of, None where a field is no such list."""
    of = get_args(annotation)[0] if get_origin(annotation) is tuple else None
    return of if isinstance(of, type) and issubclass(of, Section) else None
