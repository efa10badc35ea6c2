"""Metrics in Prometheus' text form: right over lost connections, told to whom they are for, named as the rules do."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from connectors.embedded import EmbeddedStore
from connectors.mqtt import MqttFeed, MqttPublisher
from connectors.payloads import encode_readings
from connectors.spool import Spool
from dashboards.app import create_app
from pm.config import AlertsSection, DashboardSection, IngestSection, PlantSection, load
from pm.domain import Reading
from pm.errors import ConfigError, RecordsUnavailable, StoreUnavailable
from pm.ingest import Ingest
from pm.metrics import Metrics, reason_label
from pm.records import Records
from tests.dashboard_plant import MODEL, NOW, DashboardPlant, dashboard_plant
from tests.servers.ingest import DeadLetterList, wall_us
from tests.servers.mosquitto import mosquitto
from tests.servers.programs import program, wait_until
from tests.test_dashboard import login
from tests.test_ingest import FaultyStore, ListFeed, delivery

RULES = Path(__file__).parents[1] / "deploy" / "prometheus"
DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"
Found = dict[tuple[str, tuple[str, ...]], float]


def read(metrics: Metrics) -> Found:
    """Sample name and label values (without `le`) to value, as Prometheus' own parser reads the page."""
    text, content_type = metrics.page()
    assert content_type.startswith("text/plain")
    found: Found = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            if "le" not in sample.labels:
                found[sample.name, tuple(sample.labels.values())] = sample.value
    return found


def metrics_of(records: Records, now: datetime | None = None) -> Metrics:
    return Metrics(now_us=wall_us, records=records, plant_time=lambda: now)


def test_counters_go_on_over_a_lost_connection(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, Records.open("sqlite://") as records:
        feed, store, metrics = MqttFeed(broker.section()), EmbeddedStore(None), metrics_of(records)
        feed.open()
        ingest = Ingest(
            feed,
            store,
            DeadLetterList(),
            section=IngestSection(),
            now_us=wall_us,
            observers=[metrics.observer(feed.name)],
        )
        metrics.follow(ingest)

        def publish(numbers: range, *strange: bytes) -> None:
            publisher = MqttPublisher(broker.section())
            publisher.open()
            for number in numbers:
                reading = Reading("a", wall_us() + number, {"n": float(number)})
                publisher.publish("plant/a/readings", encode_readings([reading]))
            for payload in strange:
                publisher.publish("plant/a/readings", payload)
            publisher.flush()
            publisher.close()

        def settle(messages: int) -> Found:
            while ingest.counts.messages < messages:
                ingest.step()
            return read(metrics)

        publish(range(20), b"nonsense", b'{"values":{"n":"1"}}', b'{"time":4000000000,"values":{"n":1}}', b"\xff")
        name = (feed.name,)
        first = settle(24)
        assert first["pm_ingest_messages_total", name] == first["pm_ingest_received_messages_total", name] == 24
        broker.stop()
        wait_until(lambda: not feed.connected, "the loss of the connection")
        assert read(metrics)["pm_ingest_connected", name] == 0.0
        broker.start()
        wait_until(lambda: feed.connected, "the connection")
        publish(range(20, 50))
        last = settle(54)
        feed.close()
        store.close()
    assert last["pm_ingest_messages_total", name] == 54 and last["pm_ingest_reconnects_total", name] == 1
    assert last["pm_ingest_readings_total", name] == 51
    assert last["pm_ingest_dropped_messages_total", name] == 0
    reasons = {key[1][1]: value for key, value in last.items() if key[0] == "pm_ingest_dead_letters_total"}
    assert reasons == {"json": 1, "value": 1, "encoding": 1}
    assert last["pm_ingest_store_write_seconds_count", name] == last["pm_ingest_batches_total", name]
    assert 0 < last["pm_ingest_delay_seconds_sum", name] < 600
    assert last["pm_ingest_unacknowledged_messages", name] == last["pm_ingest_queue_messages", name] == 0
    assert last["pm_records_up", ()] == 1


def test_the_store_away_the_spool_and_the_end_of_acknowledging_are_seen(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit=600)
    feed = ListFeed([delivery(n) for n in range(3)])
    store = FaultyStore([StoreUnavailable("the store is away")] * 9)
    with Records.open("sqlite://") as records:
        metrics = metrics_of(records)
        ingest = Ingest(feed, store, DeadLetterList(), section=IngestSection(), now_us=wall_us, spool=spool)  # type: ignore[arg-type]
        metrics.follow(ingest)
        ingest.step()
        spooling = read(metrics)
        feed.to_come = [delivery(n) for n in range(3, 50)]
        ingest.step()
        stopped = read(metrics)
    spool.close()
    name = ("list",)
    assert spooling["pm_ingest_store_away", name] == 1 and spooling["pm_ingest_stopped", name] == 0
    assert spooling["pm_ingest_spool_messages", name] == 3 and 0 < spooling["pm_ingest_spool_bytes", name] <= 600
    assert stopped["pm_ingest_stopped", name] == 1 and stopped["pm_ingest_unacknowledged_messages", name] == 47


def test_what_the_records_say_and_that_they_are_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dashboard_plant(tmp_path) as plant:
        metrics = metrics_of(plant.records, NOW)
        found = read(metrics)
        assert found["pm_assessments_total", ()] == 57  # every three hours of a week, both ends
        assert found["pm_forecasts_total", ()] == 57 * 6
        assert found["pm_abstentions_total", ()] == found["pm_abstaining_assets", ("stale",)] * 10
        assert found["pm_alerts", ("acknowledged",)] == 1 and found["pm_alerts", ("closed",)] == 1
        assert found["pm_alerts", ("shelved",)] == 0
        assert found["pm_assessment_timestamp_seconds", ()] == NOW.timestamp()
        assert found["pm_model_age_seconds", ()] == 8 * 86400 and found["pm_model_info", (MODEL,)] == 1

        def away() -> None:
            raise RecordsUnavailable("the records are away")

        monkeypatch.setattr(plant.records, "totals", away)
        lost = read(metrics)
        assert lost["pm_records_up", ()] == 0 and ("pm_assessments_total", ()) not in lost


def test_reasons_come_under_a_few_words() -> None:
    said = {
        "time 2030-01-01T00:00:00Z is 1:00:00 ahead of the clock here; set the sender's clock": "future",
        "not UTF-8 at byte 0": "encoding",
        "not JSON: unexpected character": "json",
        "time 'soon' is not ISO 8601": "time",
        "volt is 'high', not a number": "value",
        "10001 samples; at most 10000 are read": "size",
        "something new": "other",
    }
    assert {reason: reason_label(reason) for reason in said} == said


@pytest.mark.parametrize(
    ("token", "header", "status"),
    [("", None, 401), ("", "Bearer ", 401), ("s3cret", "Bearer s3cret", 200), ("s3cret", "Bearer s3cre", 401),
     ("s3cret", "Basic s3cret", 401), ("s3cret", "Bearer é", 401), ("s3cret", None, 401)],
)  # fmt: skip
def test_the_dashboard_serves_metrics_to_users_and_to_the_token(
    made: Callable[[str], DashboardPlant], token: str, header: str | None, status: int
) -> None:
    plant = made(token)
    stranger = plant.app.test_client()
    answer = stranger.get("/metrics", headers={"Authorization": header} if header is not None else {})
    assert answer.status_code == status
    assert ("pm_assessments_total" in answer.text) == (status == 200)
    if status == 401:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "pm_alerts{" in login(plant).get("/metrics").text


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A dashboard with this token."""
    with dashboard_plant(tmp_path_factory.mktemp("plant")) as plant:
        kept: dict[str, DashboardPlant] = {}

        def make(token: str) -> DashboardPlant:
            if token not in kept:
                app = create_app(
                    records=plant.records, store=plant.store, plant=PlantSection(), dashboard=DashboardSection(),
                    alerts=AlertsSection(), now=lambda: NOW, status=dict,
                    metrics=metrics_of(plant.records, NOW).page, metrics_token=token,
                )  # fmt: skip
                kept[token] = DashboardPlant(plant.records, plant.store, app)
            return kept[token]

        yield make


def test_a_port_for_others_needs_a_token(tmp_path: Path) -> None:
    path = tmp_path / "pm.toml"
    path.write_text('[metrics]\nport = 9101\nhost = "0.0.0.0"\n')
    with pytest.raises(ConfigError, match="token_file"):
        load(path, {})
    (tmp_path / "token").write_text("s3cret\n")
    path.write_text(f'[metrics]\nport = 9101\nhost = "0.0.0.0"\ntoken_file = "{tmp_path / "token"}"\n')
    assert load(path, {}).metrics.token.get_secret_value() == "s3cret"


def test_the_rules_and_the_docs_name_metrics_that_there_are(tmp_path: Path) -> None:
    with dashboard_plant(tmp_path) as plant:
        metrics = metrics_of(plant.records, NOW)
        ingest = Ingest(
            ListFeed([delivery(0)]),  # type: ignore[arg-type]
            plant.store,
            DeadLetterList(),
            section=IngestSection(),
            now_us=wall_us,
            observers=[metrics.observer("list")],
        )
        metrics.follow(ingest)
        ingest.step()
        text = metrics.page()[0].decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    names = {sample.name for family in families.values() for sample in family.samples} | set(families)
    names |= {f"{name}_total" for name, family in families.items() if family.type == "counter"}
    rules = (RULES / "pm-alerts.yml").read_text()
    assert rules.count("- alert:") == rules.count("expr:") == rules.count("summary:") >= 10
    for expression in re.findall(r"expr: (.+)", rules):
        used = re.findall(r"\bpm_\w+", expression)
        assert set(used) <= names, expression
        assert used or "up{" in expression
    documented = set(re.findall(r"`(pm_\w+)`", DOCS.read_text()))
    assert documented <= names
    ours = {sample.name for f in families.values() for sample in f.samples if sample.name.startswith("pm_")}
    plain = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in ours}
    assert plain <= documented, "every metric has its line in docs/metrics.md"


def test_prometheus_own_tool_takes_the_rules_and_the_page(tmp_path: Path) -> None:
    tool = program("promtool", "prometheus")
    subprocess.run([tool, "check", "rules", str(RULES / "pm-alerts.yml")], check=True, capture_output=True)
    config = (RULES / "prometheus.yml").read_text().replace("/srv/pm/metrics-token", str(tmp_path / "token"))
    (tmp_path / "token").write_text("s3cret")
    (tmp_path / "prometheus.yml").write_text(config)
    shutil.copy(RULES / "pm-alerts.yml", tmp_path)
    subprocess.run([tool, "check", "config", str(tmp_path / "prometheus.yml")], check=True, capture_output=True)
    with dashboard_plant(tmp_path / "plant") as plant:
        text = metrics_of(plant.records, datetime.now(UTC)).page()[0]
    subprocess.run([tool, "check", "metrics"], input=text, check=True, capture_output=True)
