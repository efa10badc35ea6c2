"""The composition root: the parts of the service, wired to their edges, started and stopped together."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pm.config import Config
from pm.data_alerts import DataAlert
from pm.data_watch import DataWatch
from pm.domain import Explanation
from pm.edges import (
    CLOCK_TICK,
    LOOPBACK,
    Champion,
    feeds,
    late_watch,
    local_broker,
    open_records,
    open_spool,
    open_store,
    plant_clock,
    retry_dead_letters,
    wall_now,
    wall_us,
)
from pm.errors import PmError
from pm.live import until_interrupted
from pm.status import status

if TYPE_CHECKING:
    from waitress.server import BaseWSGIServer

    from connectors.mqtt import MqttPublisher
    from connectors.mqtt_notifier import MqttNotifier
    from pm.assess import Assessor
    from pm.ingest import Ingest
    from pm.metrics import Metrics
    from pm.ports import IngestObserver
    from pm.schedule import PlantSchedule

log = logging.getLogger(__name__)

PARTS = ("ingest", "schedule", "dashboard")


class Service:
    """The parts that were asked for, started and stopped together. A context manager."""

    def __init__(
        self,
        config: Config,
        *,
        config_path: Path | None = None,
        parts: Sequence[str] = PARTS,
        observer: IngestObserver | None = None,
    ) -> None:
        """observer: looks on at what ingest stores."""
        self.config = config
        self.mqtt = config.mqtt
        """Where the broker is by now: the embedded one's port is known once it runs."""
        self.dashboard_url = ""
        self._config_path = config_path
        self._parts = tuple(parts)
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._held = ExitStack()
        self.ingests: list[Ingest] = []
        """One for each feed, where ingest is a part."""
        self._observer = observer
        self._notifier: MqttNotifier | None = None
        self._schedule: PlantSchedule | None = None
        self._retraining: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Service:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, stop: threading.Event, look: Callable[[Service], None] | None = None) -> None:
        """Until `stop` is set or one of the parts fails; raises what that part raised. `look` is called each second."""
        while not stop.wait(0.2 if look is None else 1.0):
            if self._failure is not None:
                raise self._failure
            if look is not None:
                look(self)

    def stop(self) -> None:
        """End every part in an order that loses nothing: ingest stores and acknowledges what it holds."""
        self._stopping.set()
        self._held.close()

    def _start(self) -> None:
        self.records = open_records(self.config)
        self._held.callback(self.records.close)
        self.store = open_store(self.config)
        self._held.callback(self.store.close)
        self.champion = Champion(self.records, self.config.assess.runtime)
        self.clock = plant_clock(self.config, self.records)
        self.metrics = self._measure()
        self._data_watch = DataWatch(
            self.records, quiet=self.config.ingest.alert_quiet, now=wall_now, tell=self._tell_data_alerts
        )
        if "ingest" in self._parts or "schedule" in self._parts:
            self._start_broker()
        if "schedule" in self._parts:
            self._start_schedule()
        if "ingest" in self._parts:
            self._start_ingest()
            self._serve_metrics()
        if self._schedule is not None:
            self._schedule.start(every=timedelta(seconds=0.2 if self.config.clock.source == "feed" else 5.0))
            self._held.callback(self._schedule.stop)
        if "ingest" in self._parts or "schedule" in self._parts:
            self._thread("data watch", self._data_watch.run)
        if "dashboard" in self._parts:
            self._start_dashboard()

    def _measure(self) -> Metrics:
        from pm.metrics import Metrics

        return Metrics(now_us=wall_us, records=self.records, plant_time=self.clock.now)

    def _serve_metrics(self) -> None:
        """On a port of their own, where one is configured; the dashboard serves them too."""
        section = self.config.metrics
        if not section.port:
            return
        from pm.metrics import application

        self._serve(
            "metrics",
            application(self.metrics, section.token.get_secret_value()),
            section.host,
            section.port,
            threads=1,
        )

    def _start_broker(self) -> None:
        """The embedded broker belongs to ingest; a schedule in another process finds it at its configured port."""
        if self.config.mqtt.host:
            return
        if "ingest" not in self._parts:
            self.mqtt = local_broker(self.config.mqtt)
            return
        from connectors.broker import EmbeddedBroker

        self._broker = EmbeddedBroker(self.config.mqtt.embedded, self.config.mqtt.port, self._data_dir() / "broker")
        port = self._broker.start()
        self._held.callback(self._broker.stop)
        self.mqtt = self.config.mqtt.model_copy(update={"host": LOOPBACK, "port": port})

    def _data_dir(self) -> Path:
        return self.config.models.dir.parent

    def _start_ingest(self) -> None:
        """One loop for each feed, in a thread of its own; they share the store, and trouble with one is its own."""
        from pm.ingest import FeedClock, Ingest

        follows_feed = self.config.clock.source == "feed"
        watermark = FeedClock(self.records.last_tick(CLOCK_TICK), self._keep_watermark) if follows_feed else None
        one_subscription = not self.config.mqtt.host and not self._broker.keeps_order
        for feed in feeds(self.config, self.mqtt, one_subscription=one_subscription, register=self.records):
            spool = None
            if self.config.ingest.spool_limit:
                spool = open_spool(self.config, feed.name)
                self._held.callback(spool.close)
            look = self._data_watch.observer()
            ingest = Ingest(
                feed,
                self.store,
                self.records,
                section=self.config.ingest,
                now_us=wall_us,
                assets=self.records,
                watermark=watermark,
                spool=spool,
                late=late_watch(self.config, self.records),
                observers=[self.metrics.observer(feed.name), look, *([self._observer] if self._observer else [])],
            )
            self.metrics.follow(ingest)
            self._data_watch.follow(look, ingest)
            feed.open()
            self._held.callback(feed.close)
            self.ingests.append(ingest)
            self._thread(f"ingest from {feed.name}", ingest.run)

    def _keep_watermark(self, at: datetime) -> None:
        if self._schedule is not None and self.records.last_tick(CLOCK_TICK) is None:
            # The first time that the feed speaks of: ticks count from there, not from where a slow start first looks.
            self._schedule.begin(at)
        self.records.set_tick(CLOCK_TICK, at)

    def _start_schedule(self) -> None:
        from pm.schedule import Job, PlantSchedule, cron

        zone = self.config.plant.timezone
        every_tick: Literal["all", "latest"] = "all" if self.config.clock.source == "feed" else "latest"
        publisher = self._publisher() if self.config.mqtt.publish else None
        assess = AssessmentJob(self, publisher)
        jobs = [Job("assess", cron(self.config.assess.cron, zone), assess, catch_up=every_tick)]
        if self.config.retrain.enabled:
            jobs.append(Job("retrain", cron(self.config.retrain.cron, zone), self._spawn_retrain))
        jobs.append(Job("prune", cron("30 2 * * *", zone), self._prune))
        self._schedule = PlantSchedule(clock=self.clock, ticks=self.records, jobs=jobs)

    def _publisher(self) -> MqttPublisher:
        from connectors.mqtt import MqttPublisher
        from connectors.mqtt_notifier import STATUS_TOPIC, MqttNotifier

        publisher = MqttPublisher(self.mqtt, client_id=f"{self.mqtt.client_id}-out", status_topic=STATUS_TOPIC)
        publisher.open()
        self._held.callback(publisher.close)
        self._notifier = MqttNotifier(publisher)
        return publisher

    def _tell_data_alerts(self, alerts: Sequence[DataAlert]) -> None:
        if self._notifier is not None:
            self._notifier.data_alerts(alerts)

    def _prune(self, at: datetime) -> None:
        self.records.prune_forecasts(at - self.config.records.keep_forecasts)
        self.records.prune_revisions(at - self.config.records.keep_forecasts)
        self.records.prune_data_alerts(wall_now() - self.config.records.keep_forecasts)
        section = self.config.store
        if section.kind == "embedded" and section.retention is not None:
            from connectors.embedded import EmbeddedStore

            if isinstance(self.store, EmbeddedStore):  # InfluxDB sees to it by itself
                self.store.delete_before(at - section.retention)

    def _spawn_retrain(self, at: datetime) -> None:
        """A process of its own: training must not take the service's time, nor its memory, nor bring it down."""
        if self._retraining is not None and self._retraining.poll() is None:
            log.warning("retraining of %s is passed over: the one before is still running", at)
            return
        command = [sys.executable, "-m", "pm.cli", "retrain", "--quiet", "--at", at.isoformat()]
        if self._config_path is not None:
            command += ["--config", str(self._config_path)]
        self._retraining = subprocess.Popen(["nice", *command], stdin=subprocess.DEVNULL)
        self._held.callback(_end, self._retraining)
        log.info("retraining started in process %d", self._retraining.pid)

    def _start_dashboard(self) -> None:
        from dashboards.app import create_app

        app = create_app(
            records=self.records,
            store=self.store,
            plant=self.config.plant,
            dashboard=self.config.dashboard,
            alerts=self.config.alerts,
            now=self.clock.now,
            status=self._status,
            explain=self._explain,
            retry=self._retry_letters,
            metrics=self.metrics.page,
            metrics_token=self.config.metrics.token.get_secret_value(),
        )
        section = self.config.dashboard
        self.dashboard_url = self._serve("dashboard", app, section.host, section.port, threads=4)

    def _serve(self, part: str, application: Any, host: str, port: int, *, threads: int) -> str:
        """Serve a web application; its address. `part` is its section of the configuration."""
        from waitress.server import create_server

        try:
            server: BaseWSGIServer = create_server(application, host=host, port=port, threads=threads, ident="pm")
        except OSError as error:
            raise PmError(
                f"{part} cannot listen on {host}:{port} ({error.strerror}); "
                f"set another {part}.port (in the environment of one process: PM_{part.upper()}__PORT)"
            ) from None
        url = f"http://{host}:{server.effective_port}"
        log.info("%s at %s", part, url)
        self._thread(part, lambda _stop: server.run())
        self._held.callback(server.close)
        return url

    def _status(self) -> Mapping[str, Any]:
        """What the service says of itself on the dashboard."""
        return status(self.records, self.config.alerts.budget, self.ingests)

    def _retry_letters(self, numbers: Sequence[int]) -> tuple[int, int]:
        told = retry_dead_letters(self.config, self.records, self.store, numbers)
        return told.messages - told.rejects, told.rejects

    def _explain(self, asset: str, at: datetime) -> Explanation:
        from pm.archive import plant_history

        forecaster = self.champion.present()
        if forecaster is None:
            return Explanation()
        interval, start = self.config.plant.interval, at - forecaster.lookback
        history = plant_history(self.store, self.records, interval, assets=[asset], start=start, end=at)
        return forecaster.explain(history, at, asset)

    def _thread(self, name: str, run: Any) -> None:
        def guarded() -> None:
            try:
                run(self._stopping)
            except Exception as error:
                if not self._stopping.is_set():
                    log.exception("%s failed; the service stops", name)
                    self._failure = error

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()

        def join() -> None:
            self._stopping.set()
            thread.join(15.0)

        self._held.callback(join)


class AssessmentJob:
    """The scheduled assessment with whoever is champion by then."""

    def __init__(self, service: Service, publisher: MqttPublisher | None) -> None:
        self._service = service
        self._publisher = publisher
        self._assessor: Assessor | None = None
        self._told = False

    def __call__(self, at: datetime) -> None:
        from connectors.mqtt_notifier import MqttNotifier
        from pm.assess import Assessor
        from pm.reassess import begin, reassess

        service = self._service
        forecaster = service.champion.present()
        if forecaster is None:
            if not self._told:
                log.warning("no model is champion yet, so nothing is forecast; train one with 'pm train'")
            self._told = True
            return
        if self._assessor is None:
            self._assessor = Assessor(
                store=service.store,
                log=service.records,
                register=service.records,
                forecaster=forecaster,
                plant=service.config.plant,
                assess=service.config.assess,
                alerts=service.config.alerts,
                notifiers=[MqttNotifier(self._publisher)] if self._publisher is not None else [],
            )
        self._assessor.forecaster = forecaster
        begin(service.records, at)
        self._assessor.assess(at)
        reassess(self._assessor, service.records, at)


def run(
    config: Config,
    *,
    config_path: Path | None,
    parts: Sequence[str] = PARTS,
    observer: IngestObserver | None = None,
    look: Callable[[Service], None] | None = None,
) -> None:
    """Run the service until SIGINT or SIGTERM, or until a part fails; raises what that part raised.

    observer: looks on at what ingest stores. look: called each second.
    """
    service = Service(config, config_path=config_path, parts=parts, observer=observer)
    with until_interrupted(threading.Event()) as stop, service:
        service.wait(stop, look)
    log.info("service stopped")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
