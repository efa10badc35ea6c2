"""What docs/ingest.md says of Mosquitto's settings, held against a real one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from connectors.mqtt import MqttFeed, MqttPublisher
from connectors.payloads import encode_readings
from pm.config import MqttSection
from pm.domain import Reading
from tests.servers.programs import free_port, listening, program, stop, wait_until

DOCS = Path(__file__).parents[1] / "docs" / "ingest.md"
WAITING = 1_300
"""More than the 1,000 messages that Mosquitto keeps unless told, and than the 20 that it has under way."""


def test_with_the_documented_settings_the_broker_keeps_everything_and_sends_it_at_once(tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8")
    (lines,) = re.findall(r"```\n(# Messages kept for pm.*?)```", text, re.DOTALL)
    (at_once,) = re.findall(r"```\n(autosave_on_changes.*?)```", text, re.DOTALL)
    port = free_port()
    (tmp_path / "conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest none\n"
        + ("user root\n" if os.geteuid() == 0 else "")
        + lines.replace("/var/lib/mosquitto/", f"{tmp_path}/").replace("autosave_interval 60\n", "")
        + at_once
    )

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([program("mosquitto", "mosquitto"), "-c", str(tmp_path / "conf")])
        wait_until(lambda: listening(port), "mosquitto")
        return process

    process = start()
    try:
        section = MqttSection(host="127.0.0.1", port=port)
        feed = MqttFeed(section)
        feed.open()
        feed.close()  # away, with its session
        publisher = MqttPublisher(section)
        publisher.open()
        for number in range(WAITING):
            publisher.publish("plant/a/readings", encode_readings([Reading("a", 1 + number, {"n": 1.0})]))
        publisher.flush()
        publisher.close()
        stop(process)
        process = start()  # messages and session outlive it
        feed = MqttFeed(section)
        feed.open()
        wait_until(lambda: feed.waiting >= WAITING, "all of them, none acknowledged")
        feed.close()
    finally:
        stop(process)
