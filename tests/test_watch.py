"""`pm ingest`: alone, several at once, with a live table, with metrics on a port; ended in order."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

from rich.console import Console

from connectors.embedded import EmbeddedStore
from connectors.mqtt import MqttPublisher
from connectors.payloads import encode_readings
from pm.domain import Reading, from_us
from pm.ports import Delivery
from pm.watch import AssetRow, AssetsHeard, FeedNow, rows
from pm.watch_table import line, table
from tests.servers.mosquitto import mosquitto
from tests.servers.programs import free_port, wait_until

T0 = 1_795_428_000_000_000
NOW = from_us(T0)


def feed(state: str, messages: int, readings: int) -> FeedNow:
    return FeedNow("broker b:1883", state, messages, readings, 12.0, 3, 5, 0, 2, 1)


def test_rates_are_of_the_time_between_two_looks() -> None:
    (row,) = rows([feed("connected", 100, 1000)], [feed("connected", 160, 1900)], 2.0)
    assert (row.messages_per_second, row.readings_per_second) == (30.0, 450.0)
    (new,) = rows([], [feed("connected", 160, 1900)], 2.0)
    assert (new.messages_per_second, new.readings_per_second) == (0.0, 0.0)
    assert line(row, NOW) == (
        "2026-11-23T10:00:00Z broker b:1883: connected, 30 messages/s, 450 readings/s, delay 12 ms, queue 3, "
        "unacknowledged 5, spool 0, dead letters 2, dropped 1"
    )


def test_assets_are_counted_and_the_latest_reading_never_goes_back() -> None:
    heard = AssetsHeard({"old": NOW - timedelta(days=2)})
    heard.stored([Delivery(0, (Reading("a", T0, {"n": 1.0}), Reading("a", T0 - 5, {"n": 1.0})))], [], 0.0)
    heard.stored([Delivery(0, (Reading("b", T0 + 1, {"n": 1.0}), Reading("a", T0 - 9, {"n": 1.0})))], [], 0.0)
    assert heard.busiest(1) == [AssetRow("a", 3, NOW)]
    assert heard.most_silent(2) == [AssetRow("old", 0, NOW - timedelta(days=2)), AssetRow("a", 3, NOW)]


def test_the_table_shows_feeds_and_assets() -> None:
    out = StringIO()
    shown = rows([], [feed("spooling", 1, 2)], 1.0)
    Console(file=out, width=160).print(table(shown, [AssetRow("a", 3, NOW)], [AssetRow("b", 0, None)], NOW))
    text = out.getvalue()
    for word in ("broker b:1883", "spooling", "12 ms", "busiest", "0.0 s ago", "never"):
        assert word in text


@contextmanager
def pm_ingest(folder: Path, *arguments: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process; it must end in order on SIGINT."""
    command = [sys.executable, "-m", "pm.cli", "ingest", "--config", str(folder / "pm.toml"), *arguments]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, **{"stderr": log, "stdout": subprocess.DEVNULL, **options})  # type: ignore[call-overload]
    try:
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, (folder / "log").read_text()
    finally:
        process.kill()
        process.wait()


def publish(section, numbers: range) -> None:
    publisher = MqttPublisher(section)
    publisher.open()
    for number in numbers:
        publisher.publish("plant/a/readings", encode_readings([Reading("a", T0 + number, {"n": float(number)})]))
    publisher.flush()
    publisher.close()


def test_two_processes_divide_the_work_one_shows_it_and_one_tells_prometheus(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        port = free_port()
        (tmp_path / "token").write_text("s3cret")
        (tmp_path / "pm.toml").write_text(
            f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\nshare = "plant"\n'
            f'[metrics]\ntoken_file = "{tmp_path / "token"}"\n'
        )

        def scrape(token: str) -> str:
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": token})
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return answer.read().decode()

        def answers() -> bool:
            try:
                return 'pm_ingest_connected{feed="broker' in scrape("Bearer s3cret")
            except OSError:
                return False

        out = (tmp_path / "out").open("wb")
        with (
            pm_ingest(tmp_path, "--client-id", "one", env=os.environ | {"PM_METRICS__PORT": str(port)}),
            pm_ingest(tmp_path, "--client-id", "two", "--watch", stdout=out),
        ):
            wait_until(answers, "the metrics", 60)
            wait_until(lambda: b"connected" in (tmp_path / "out").read_bytes(), "the second process", 60)
            publish(broker.section(client_id="source"), range(300))
            store = EmbeddedStore(tmp_path / "data" / "readings.db")
            wait_until(lambda: store.counts()["readings"] == 300, "the readings", 60)
            store.close()
            try:
                scrape("Bearer other")
                raise AssertionError("let in with a wrong token")
            except urllib.error.HTTPError as error:
                assert error.code == 401
            text = scrape("Bearer s3cret")
        out.close()
        lines = (tmp_path / "out").read_text().splitlines()
        log = (tmp_path / "log").read_text()
    (one,) = [float(text.split()[-1]) for text in text.splitlines() if text.startswith("pm_ingest_readings_total")]
    assert 0 < one < 300, "the broker gave all to one"
    assert all("messages/s" in told for told in lines) and len(lines) >= 1
    assert log.count("service stopped") == 2 and "Traceback" not in log


def test_a_terminal_shows_a_table_with_the_log_above_it(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        (tmp_path / "pm.toml").write_text(f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n')
        ours, theirs = pty.openpty()
        seen = bytearray()

        def read() -> None:
            while True:
                try:
                    seen.extend(os.read(ours, 65536))
                except OSError:  # the other end is closed
                    return

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        environment = os.environ | {"COLUMNS": "170", "LINES": "50", "TERM": "xterm"}
        with pm_ingest(tmp_path, "--watch", stdout=theirs, stderr=theirs, stdin=theirs, env=environment):
            os.close(theirs)
            wait_until(lambda: b"busiest assets" in seen, "the table", 60)
            publish(broker.section(client_id="source"), range(20))
            wait_until(lambda: b"20" in seen and b" ago" in seen, "the asset", 30)
        reader.join(5)
        os.close(ours)
    text = seen.decode(errors="replace")
    assert "connected" in text and "most silent assets" in text and f"broker 127.0.0.1:{broker.port}" in text
    assert text.index("connected") < text.index("busiest assets"), "the log stands above"
    assert datetime.now(UTC).strftime("%Y") in text
