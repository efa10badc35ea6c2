"""Metrics for Prometheus: what ingest and the service have done and how they stand, read when they are asked for.

Counters come from totals that ingest and its feeds keep since the process started, so that a connection lost and found
again takes nothing back. Only times are measured batch by batch.
"""

from __future__ import annotations

import hmac
import logging
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pm.data_alerts import Fault
from pm.domain import AlertState, to_us
from pm.errors import PmError
from pm.ports import Delivery, Reject

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from pm.ingest import Ingest
    from pm.records import Records

log = logging.getLogger(__name__)

_WRITE_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_DELAY_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0, 300.0, 3600.0)
_LAG_SECONDS: Final = (0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 6 * 3600.0, 86400.0)

_REASONS: Final = (
    ("future", ("ahead of the clock here",)),
    ("encoding", ("not UTF-8",)),
    ("json", ("not JSON", "neither JSON", "stands twice", "nested deeper")),
    ("size", ("at most",)),
    ("time", ("time ",)),
    ("value", ("not a number", "too large for a number", "two values", "no value", "NaN", "infinit")),
    ("name", ("cannot be named", "asset ", "point ")),
    ("sparkplug", ("birth", "metric", "protobuf", "alias")),
)
"""Words of a dead letter's reason, and the label that they come under: reasons themselves name values without end."""
OTHER: Final = "other"


def reason_label(reason: str) -> str:
    """One of a few words for the reason of a dead letter."""
    return next((label for label, words in _REASONS if any(word in reason for word in words)), OTHER)


class _BatchTimes:
    """A `pm.ports.IngestObserver` of one feed."""

    def __init__(self, metrics: Metrics, feed: str) -> None:
        self._now_us = metrics.now_us
        self._write = metrics.write.labels(feed)
        self._delay = metrics.delay.labels(feed)
        self._lag = metrics.lag.labels(feed)
        self._latest = metrics.latest.labels(feed)
        self._letters = metrics.letters
        self._feed = feed

    def stored(self, batch: Sequence[Delivery], rejects: Sequence[Reject], seconds: float) -> None:
        self._write.observe(seconds)
        now_us = self._now_us()
        if batch and batch[0].received_us:
            self._delay.observe(max(0.0, (now_us - batch[0].received_us) / 1e6))
        # The last reading alone: to look at each would cost more than it tells.
        last = next((delivery.readings[-1] for delivery in reversed(batch) if delivery.readings), None)
        if last is not None:
            self._lag.observe(max(0.0, (now_us - last.time_us) / 1e6))
            self._latest.set(last.time_us / 1e6)
        for reject in rejects:
            self._letters.labels(self._feed, reason_label(reject.reason)).inc()


class Metrics(Collector):
    """The metrics of one process. Its observers are called by ingest's threads, the rest by whoever serves them."""

    def __init__(
        self, *, now_us: Callable[[], int], records: Records, plant_time: Callable[[], datetime | None]
    ) -> None:
        """now_us: the machine's clock. plant_time: up to when plant time is complete, for the age of the model."""
        self.now_us = now_us
        self._records = records
        self._plant_time = plant_time
        self._ingests: list[Ingest] = []
        self._registry = registry = CollectorRegistry()
        self.write = Histogram(
            "pm_ingest_store_write_seconds",
            "How long the store took for a batch.",
            ["feed"],
            buckets=_WRITE_SECONDS,
            registry=registry,
        )
        self.delay = Histogram(
            "pm_ingest_delay_seconds",
            "From receiving the first message of a batch to having stored it.",
            ["feed"],
            buckets=_DELAY_SECONDS,
            registry=registry,
        )
        self.lag = Histogram(
            "pm_ingest_lag_seconds",
            "From the time of a reading to having stored it; the last reading of each batch.",
            ["feed"],
            buckets=_LAG_SECONDS,
            registry=registry,
        )
        self.latest = Gauge(
            "pm_ingest_latest_reading_timestamp_seconds",
            "Time of the reading stored last.",
            ["feed"],
            registry=registry,
        )
        self.letters = Counter(
            "pm_ingest_dead_letters_total",
            "Messages that could not be read or that the store refused, kept as dead letters.",
            ["feed", "reason"],
            registry=registry,
        )
        registry.register(self)
        ProcessCollector(registry=registry)

    def observer(self, feed: str) -> _BatchTimes:
        """What measures the batches of the feed of this name."""
        return _BatchTimes(self, feed)

    def follow(self, ingest: Ingest) -> None:
        """Show this ingest's totals from now on."""
        self._ingests.append(ingest)

    def page(self, accept: str | None = None) -> tuple[bytes, str]:
        """All metrics as text, and its content type; `accept` is the request's header."""
        encode, content_type = choose_encoder(accept or "")
        return encode(self._registry), content_type

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: what there is to tell depends on what is followed."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._of_feeds()
        up = GaugeMetricFamily(
            "pm_records_up", "Whether the records database answers; without it what follows is absent."
        )
        try:
            found = list(self._of_service())
        except PmError as error:
            log.warning("metrics without what the records say: %s", error)
            up.add_metric([], 0.0)
            yield up
            return
        up.add_metric([], 1.0)
        yield up
        yield from found

    def _of_feeds(self) -> Iterator[Metric]:
        rows = [(ingest.feed.name, ingest.counts, ingest.feed.link, ingest) for ingest in self._ingests]
        counters: list[tuple[str, str, Callable[[Any, Any, Ingest], float]]] = [
            (
                "received_messages",
                "Messages received, those that came again included.",
                lambda c, link, i: link.messages,
            ),
            ("messages", "Messages that are durable and acknowledged.", lambda c, link, i: c.messages),
            ("readings", "Readings stored, a row for each asset and time.", lambda c, link, i: c.readings),
            ("events", "Events stored.", lambda c, link, i: c.events),
            ("batches", "Batches stored.", lambda c, link, i: c.batches),
            ("dropped_messages", "Messages lost: QoS 0, and no room for them.", lambda c, link, i: link.dropped),
            ("reconnects", "Connections after the first.", lambda c, link, i: max(0, link.connections - 1)),
            ("silences", "Times that a connection stood and brought nothing.", lambda c, link, i: link.silences),
        ]
        gauges: list[tuple[str, str, Callable[[Any, Any, Ingest], float]]] = [
            ("connected", "Whether the source can be heard.", lambda c, link, i: link.connected),
            ("silent", "Whether it is connected and brings nothing.", lambda c, link, i: link.silent),
            ("queue_messages", "Messages in memory, not yet taken.", lambda c, link, i: link.waiting),
            (
                "unacknowledged_messages",
                "Messages received and durable nowhere yet.",
                lambda c, link, i: i.unacknowledged,
            ),
            ("spool_messages", "Messages on disk that wait for the store.", lambda c, link, i: c.spooled),
            ("spool_bytes", "Bytes of these on disk.", lambda c, link, i: i.spool_bytes),
            ("store_away", "Whether the store takes nothing now.", lambda c, link, i: bool(c.trouble)),
            ("stopped", "Whether acknowledging has stopped.", lambda c, link, i: i.condition.stopped),
        ]
        for name, about, value in counters:
            counter = CounterMetricFamily(f"pm_ingest_{name}", about, labels=["feed"])
            for feed, counts, link, ingest in rows:
                counter.add_metric([feed], value(counts, link, ingest))
            yield counter
        for name, about, value in gauges:
            gauge = GaugeMetricFamily(f"pm_ingest_{name}", about, labels=["feed"])
            for feed, counts, link, ingest in rows:
                gauge.add_metric([feed], float(value(counts, link, ingest)))
            yield gauge

    def _of_service(self) -> Iterator[Metric]:
        totals = self._records.totals()
        yield CounterMetricFamily("pm_assessments", "Assessments recorded.", value=totals.assessments)
        yield CounterMetricFamily("pm_forecasts", "Forecasts issued, abstentions included.", value=totals.forecasts)
        yield CounterMetricFamily("pm_abstentions", "Forecasts that abstained.", value=totals.abstained)
        abstaining = GaugeMetricFamily(
            "pm_abstaining_assets", "Assets whose forecast abstained at the latest assessment.", labels=["reason"]
        )
        for reason, count in totals.abstaining.items():
            abstaining.add_metric([reason], count)
        yield abstaining
        alerts = GaugeMetricFamily("pm_alerts", "Alerts by state.", labels=["state"])
        for state in AlertState:
            alerts.add_metric([state.value], totals.alerts.get(state.value, 0))
        yield alerts
        faults = GaugeMetricFamily("pm_data_alerts", "Open data alerts by fault.", labels=["fault"])
        found = Counts(alert.fault for alert in self._records.data_alerts())
        for fault in Fault:
            faults.add_metric([fault.value], found[fault])
        yield faults
        yield GaugeMetricFamily("pm_dead_letters", "Dead letters kept.", value=totals.dead_letters)
        if totals.assessed_at is not None:
            yield GaugeMetricFamily(
                "pm_assessment_timestamp_seconds",
                "Plant time of the latest assessment.",
                value=to_us(totals.assessed_at) / 1e6,
            )
        champion, now = self._records.champion(), self._plant_time()
        if champion is not None:
            model = GaugeMetricFamily("pm_model_info", "The champion.", labels=["version"])
            model.add_metric([champion.version], 1.0)
            yield model
            if now is not None:
                yield GaugeMetricFamily(
                    "pm_model_age_seconds",
                    "Plant time since the end of what the champion learned from.",
                    value=(now - champion.trained_until).total_seconds(),
                )


def allowed(header: str | None, token: str) -> bool:
    """Whether an Authorization header carries the bearer token; never where there is no token."""
    return bool(token) and hmac.compare_digest((header or "").encode(), f"Bearer {token}".encode())


def application(metrics: Metrics, token: str) -> Callable[[WSGIEnvironment, StartResponse], list[bytes]]:
    """A web application of the metrics alone; with a token it asks for it."""

    def answer(environ: WSGIEnvironment, start: StartResponse) -> list[bytes]:
        plain = [("Content-Type", "text/plain; charset=utf-8")]
        if environ.get("PATH_INFO") != "/metrics":
            start("404 Not Found", plain)
            return [b"metrics are at /metrics\n"]
        if token and not allowed(environ.get("HTTP_AUTHORIZATION"), token):
            start("401 Unauthorized", [*plain, ("WWW-Authenticate", "Bearer")])
            return [b"send the bearer token of metrics.token_file\n"]
        text, content_type = metrics.page(environ.get("HTTP_ACCEPT"))
        start("200 OK", [("Content-Type", content_type)])
        return [text]

    return answer
