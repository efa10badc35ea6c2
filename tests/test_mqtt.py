"""The MQTT session against real brokers: Mosquitto, and the embedded ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from connectors.broker import EmbeddedBroker
from connectors.mqtt import MqttFeed, MqttPublisher
from connectors.mqtt_notifier import STATUS_TOPIC, MqttNotifier
from pm.config import MqttSection
from pm.domain import Abstention, Alert, AlertState, Forecast
from pm.errors import FeedError, FeedUnavailable
from pm.ports import Delivery
from tests.servers.mosquitto import PASSWORD, USER, Mosquitto, mosquitto
from tests.servers.programs import wait_until


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path) as running:
        yield running


def publish(section: MqttSection, messages: list[tuple[str, bytes]], *, retain: bool = False) -> None:
    publisher = MqttPublisher(section)
    publisher.open()
    for topic, payload in messages:
        publisher.publish(topic, payload, retain=retain)
    publisher.flush()
    publisher.close()


def numbered(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    return [("plant/a/n", str(number).encode()) for number in range(start, start + count)]


def drain(feed: MqttFeed, count: int, seconds: float = 15.0) -> list[Delivery]:
    taken: list[Delivery] = []
    deadline = time.monotonic() + seconds
    while len(taken) < count and time.monotonic() < deadline:
        taken += feed.take(count - len(taken), 0.2)
    return taken


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [int(reading.values["n"]) for delivery in deliveries for reading in delivery.readings]


def test_what_is_published_is_delivered_in_order(broker: Mosquitto) -> None:
    feed = MqttFeed(broker.section(), clock_topic="pm/clock")
    feed.open()
    publish(
        broker.section(),
        [
            ("plant/a/readings", b'{"time":1795428000,"values":{"volt":1.5}}'),
            ("plant/a/events", b'{"time":1795428000,"kind":"error","code":"e1"}'),
            ("plant/a/volt", b"not a number"),
            ("other/a/volt", b"1"),
            ("pm/clock", b'{"time":"2026-11-23T10:00:00Z"}'),
        ],
    )
    first, second, third, fourth = drain(feed, 4)
    assert first.readings[0].values == {"volt": 1.5} and first.readings[0].asset == "a"
    assert second.events[0].code == "e1"
    assert (third.rejects[0].topic, third.rejects[0].payload) == ("plant/a/volt", b"not a number")
    assert fourth.clock_us == 1_795_428_000_000_000
    assert feed.take(1, 0.2) == []
    feed.close()


def test_what_is_not_acknowledged_comes_again_and_what_is_does_not(broker: Mosquitto) -> None:
    feed = MqttFeed(broker.section())
    feed.open()
    publish(broker.section(), numbered(10))
    taken = drain(feed, 10)
    feed.acknowledge(taken[:4])
    feed.close()
    publish(broker.section(), numbered(5, start=10))  # while away

    again = MqttFeed(broker.section())
    again.open()
    assert numbers(drain(again, 11)) == list(range(4, 15))
    assert again.take(1, 0.3) == []
    again.close()


def test_what_comes_again_after_a_lost_connection_is_acknowledged_under_the_new_one(broker: Mosquitto) -> None:
    feed = MqttFeed(broker.section())
    feed.open()
    publish(broker.section(), numbered(20))
    old = drain(feed, 20)
    sever(feed)
    wait_until(lambda: feed.connected and feed.waiting == 20, "redelivery")
    feed.acknowledge(old)
    new = drain(feed, 20)
    assert numbers(new) == numbers(old)
    feed.acknowledge(new)
    feed.close()
    again = MqttFeed(broker.section())
    again.open()
    assert again.take(1, 0.3) == []
    again.close()


def test_an_acknowledgement_of_a_lost_connection_is_not_taken_for_one_of_the_next(broker: Mosquitto) -> None:
    feed = MqttFeed(broker.section())
    feed.open()
    publish(broker.section(), numbered(20))
    old = drain(feed, 20)
    broker.kill()  # its session is gone, and the new one begins with the same packet ids
    wait_until(lambda: not feed.connected, "loss of the connection")
    broker.start()
    wait_until(lambda: feed.connected, "connection", 20)
    publish(broker.section(), numbered(20, start=20))
    fresh = drain(feed, 20)
    assert {d.receipt.mid for d in fresh} == {d.receipt.mid for d in old}  # type: ignore[attr-defined]
    feed.acknowledge(old)
    feed.close()
    again = MqttFeed(broker.section())
    again.open()
    assert numbers(drain(again, 20)) == numbers(fresh) == list(range(20, 40))
    again.close()


def sever(feed: MqttFeed) -> None:
    """Cut the connection as a network does."""
    connection = feed._session.client.socket()
    assert connection is not None
    connection.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
    wait_until(lambda: not feed.connected, "loss of the connection")


def test_messages_that_waited_in_memory_when_the_connection_was_lost_come_once(broker: Mosquitto) -> None:
    feed = MqttFeed(broker.section())
    feed.open()
    publish(broker.section(), numbered(50))
    wait_until(lambda: feed.waiting == 50, "arrival")
    sever(feed)
    wait_until(lambda: feed.connected and feed.waiting == 50, "redelivery")
    assert numbers(drain(feed, 50)) == list(range(50))
    assert feed.take(1, 0.3) == []
    feed.close()


def test_memory_is_bounded_by_the_queue(broker: Mosquitto) -> None:
    feed = MqttFeed(broker.section(), queue=30)
    feed.open()
    publish(broker.section(), numbered(500))
    time.sleep(0.5)
    assert feed.waiting <= 30
    found: list[int] = []
    while batch := feed.take(10, 1.0):
        found += numbers(batch)
        feed.acknowledge(batch)
    assert found == list(range(500))
    feed.close()


def test_messages_of_qos_0_wait_for_room_and_are_then_dropped_and_counted(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    feed = MqttFeed(broker.section(keepalive="3s"), queue=10)
    feed.open()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    for number in range(25):
        client.publish("plant/a/n", str(number), qos=0).wait_for_publish(5)
    wait_until(lambda: feed.dropped == 15, "15 dropped messages")
    assert numbers(drain(feed, 10)) == list(range(10))
    assert [record.message for record in caplog.records].count(
        f"broker 127.0.0.1:{broker.port}: messages of QoS 0 are dropped; publish with QoS 1 to keep them waiting"
    ) == 1
    client.publish("plant/a/n", "99", qos=0).wait_for_publish(5)
    assert numbers(drain(feed, 1)) == [99]
    client.disconnect()
    client.loop_stop()
    feed.close()


def test_a_broker_that_restarts_loses_nothing(broker: Mosquitto) -> None:
    feed = MqttFeed(broker.section())
    feed.open()
    publisher = MqttPublisher(broker.section(), inflight=50)
    publisher.open()
    found: set[int] = set()
    sent = threading.Event()

    def send() -> None:
        for topic, payload in numbered(400):
            publisher.publish(topic, payload)
            time.sleep(0.001)
        publisher.flush()
        sent.set()

    sender = threading.Thread(target=send)
    sender.start()
    restarted = False
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and (not sent.is_set() or len(found) < 400):
        batch = feed.take(20, 0.1)
        found.update(numbers(batch))
        feed.acknowledge(batch)
        if not restarted and len(found) > 100:
            broker.stop()
            broker.start()
            restarted = True
    sender.join(10)
    assert restarted and found == set(range(400))
    publisher.close()
    feed.close()


def test_a_broker_that_is_away_at_first_is_found_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broker = Mosquitto(tmp_path)
    feed = MqttFeed(broker.section())
    feed.open()
    assert not feed.connected and feed.take(1, 0.01) == []
    assert "cannot be reached" in caplog.text
    broker.start()
    wait_until(lambda: feed.connected, "connection", 20)
    publish(broker.section(), numbered(1))
    assert numbers(drain(feed, 1)) == [0]
    feed.close()
    broker.stop()


def test_a_wrong_password_is_refused_with_the_mend(tmp_path: Path) -> None:
    with mosquitto(tmp_path, password=True) as broker:
        for section in (broker.section(), broker.section(username=USER, password="wrong")):
            with pytest.raises(FeedError, match=r"check mqtt.username and mqtt.password") as caught:
                MqttFeed(section).open()
            assert not caught.value.retryable and "wrong" not in str(caught.value)
        right = broker.section(username=USER, password=PASSWORD)
        feed = MqttFeed(right)
        feed.open()
        publish(right, numbered(1))
        assert numbers(drain(feed, 1)) == [0]
        feed.close()


def test_tls_to_a_port_without_it_is_told(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    feed = MqttFeed(broker.section(tls=True, host="localhost"))
    try:
        feed.open()
    except FeedError as error:  # it answered something that is no TLS; or it reset the connection, which may be passing
        assert "set mqtt.port to its TLS port" in str(error)
    else:
        assert "does not speak TLS, set mqtt.port or mqtt.tls" in caplog.text
        feed.close()


def test_a_port_with_tls_that_is_spoken_to_without_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mosquitto(tmp_path, tls=True) as broker:
        feed = MqttFeed(broker.section())
        feed.open()
        assert not feed.connected and "where its port speaks TLS, set mqtt.tls = true" in caplog.text
        feed.close()


def test_a_refused_subscription_is_an_error_with_the_mend(broker: Mosquitto) -> None:
    feed = MqttFeed(broker.section())
    # Mosquitto's access lists refuse no subscription, so the refusal of another broker is played into the real session.
    refused = ReasonCode(PacketTypes.SUBACK, "Not authorized")
    feed._on_subscribe(feed._session.client, None, 1, [refused], None)
    with pytest.raises(FeedError, match=r"refused the subscription to plant/\+/\+: Not authorized; mend the broker's"):
        feed.open()
    assert not feed.connected


def test_a_feed_without_a_broker_is_refused() -> None:
    with pytest.raises(FeedError, match=r"mqtt\.host is empty"):
        MqttFeed(MqttSection())


def test_a_message_that_the_broker_refuses_is_told(tmp_path: Path) -> None:
    with mosquitto(tmp_path, access="topic readwrite plant/#") as broker:
        publisher = MqttPublisher(broker.section())
        publisher.open()
        publisher.publish("plant/a/n", b"1")
        publisher.flush()
        publisher.publish("forbidden/a", b"1")
        with pytest.raises(FeedError, match="refused a message: Not authorized"):
            publisher.flush()
        publisher.publish("plant/a/n", b"2")
        publisher.flush()
        with pytest.raises(FeedError, match="cannot publish on 'plant/#'"):
            publisher.publish("plant/#", b"1")
        publisher.flush()
        publisher.close()


def test_a_publisher_without_a_broker_says_so_in_time(broker: Mosquitto) -> None:
    publisher = MqttPublisher(broker.section(), inflight=2, timeout=0.2)
    publisher.open()
    broker.stop()
    wait_until(lambda: not publisher.connected, "loss of the connection")
    publisher.publish("plant/a/n", b"1")
    publisher.publish("plant/a/n", b"2")
    with pytest.raises(FeedUnavailable, match="2 messages are unconfirmed"):
        publisher.publish("plant/a/n", b"3")
    with pytest.raises(FeedUnavailable, match="2 messages are unconfirmed"):
        publisher.flush(0.1)
    assert not publisher.offer("plant/a/n", b"4")
    broker.start()
    publisher.flush(20)
    publisher.close()


class Listener:
    """Another program that listens: the last message of every topic."""

    def __init__(self, port: int, topic_filter: str) -> None:
        self.last: dict[str, bytes] = {}
        self._ready = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe(topic_filter, qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = lambda _client, _data, message: self.last.__setitem__(
            message.topic, bytes(message.payload)
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(5)

    def wait(self, topic: str) -> object:
        wait_until(lambda: topic in self.last, topic, 5)
        return json.loads(self.last[topic])

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


AT = datetime(2026, 11, 23, 10, tzinfo=UTC)
ALERT = Alert("id-1", "a/b", "seal", AT, AlertState.UNACKNOWLEDGED, "pressure falls", 0.7, "m@1")
FORECAST = Forecast("a", AT, "m@1", hazard=(0.01,) * 72, mode_probability={"seal": 0.5}, rul_hours=40.0)


def test_other_programs_are_told(broker: Mosquitto) -> None:
    publisher = MqttPublisher(broker.section(), status_topic=STATUS_TOPIC)
    publisher.open()
    notifier = MqttNotifier(publisher)
    notifier.alert(ALERT)
    notifier.forecasts([FORECAST, Forecast("off", AT, "m@1", abstained=Abstention.OFF)])
    publisher.flush()
    listener = Listener(broker.port, "pm/#")  # later, since they are retained
    alert = listener.wait("pm/alerts/a%2Fb")
    assert isinstance(alert, dict)
    assert (alert["asset"], alert["state"], alert["raised_at"]) == ("a/b", "unacknowledged", "2026-11-23T10:00:00Z")
    forecast = listener.wait("pm/forecasts/a")
    assert isinstance(forecast, dict)
    assert forecast["p24"] == FORECAST.probability(24) and forecast["failure_modes"] == {"seal": 0.5}
    abstained = listener.wait("pm/forecasts/off")
    assert isinstance(abstained, dict)
    assert abstained["p72"] is None and abstained["rul_hours"] is None and abstained["abstained"] == "off"
    assert listener.wait(STATUS_TOPIC) == {"status": "online"}
    publisher.close()
    wait_until(lambda: json.loads(listener.last[STATUS_TOPIC]) == {"status": "offline"}, "goodbye")
    listener.close()


def test_a_death_is_told_by_the_last_will(broker: Mosquitto) -> None:
    program = (
        "import sys, time\n"
        "from connectors.mqtt import MqttPublisher\n"
        "from pm.config import MqttSection\n"
        "p = MqttPublisher(MqttSection(host='127.0.0.1', port=int(sys.argv[1])), status_topic='pm/status')\n"
        "p.open(); p.flush(); print('up', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(broker.port)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"up\n"
    listener = Listener(broker.port, STATUS_TOPIC)
    assert listener.wait(STATUS_TOPIC) == {"status": "online"}
    child.kill()
    child.wait()
    wait_until(lambda: json.loads(listener.last[STATUS_TOPIC]) == {"status": "offline"}, "last will")
    listener.close()


def test_notices_that_cannot_be_sent_are_owed_and_only_the_latest_is_sent(broker: Mosquitto) -> None:
    publisher = MqttPublisher(broker.section())
    publisher.open()
    broker.stop()
    wait_until(lambda: not publisher.connected, "loss of the connection")
    notifier = MqttNotifier(publisher)
    notifier.alert(ALERT)
    notifier.alert(replace(ALERT, state=AlertState.ACKNOWLEDGED))
    notifier.forecasts([FORECAST])
    assert notifier.owed == 2
    broker.start()
    wait_until(lambda: publisher.connected, "connection", 20)
    notifier.forecasts([FORECAST])
    assert notifier.owed == 0
    publisher.flush()
    listener = Listener(broker.port, "pm/#")
    alert = listener.wait("pm/alerts/a%2Fb")
    assert isinstance(alert, dict) and alert["state"] == "acknowledged"
    listener.close()
    publisher.close()


# The embedded broker.


@pytest.fixture(params=["mosquitto", "rumqttd"])
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedBroker]:
    if request.param == "mosquitto":
        Mosquitto(tmp_path)  # skips where it is not installed
    broker = EmbeddedBroker(request.param, 0, tmp_path / "a broker")
    yield broker
    broker.stop()


def test_the_embedded_broker_keeps_messages_in_order_while_ingest_is_away(embedded: EmbeddedBroker) -> None:
    section = MqttSection(host="127.0.0.1", port=embedded.start())
    feed = MqttFeed(section, clock_topic="pm/clock", one_subscription=not embedded.keeps_order)
    feed.open()
    feed.close()
    messages = []
    for number in range(600):
        messages.append(("plant/a/n", str(number).encode()))
        if number % 10 == 9:
            messages.append(("pm/clock", json.dumps({"time": 1_000_000 + number}).encode()))
    publish(section, messages)
    feed = MqttFeed(section, clock_topic="pm/clock", one_subscription=not embedded.keeps_order)
    feed.open()
    found: list[int] = []
    while batch := feed.take(1000, 1.0):
        for delivery in batch:
            if delivery.clock_us is not None:
                assert found[-1] == delivery.clock_us // 1_000_000 - 1_000_000, "the clock overtook a reading"
            found += numbers([delivery])
        feed.acknowledge(batch)
    assert found == list(range(600))
    feed.close()


def test_the_embedded_broker_listens_on_loopback_only(embedded: EmbeddedBroker) -> None:
    port = embedded.start()
    listening = [
        line.split()[1].split(":")[0]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port
    ]
    assert listening == ["0100007F"]


def test_the_embedded_broker_is_started_again_when_it_dies(
    embedded: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    port = embedded.start()
    feed = MqttFeed(MqttSection(host="127.0.0.1", port=port))
    feed.open()
    process = embedded._process
    assert process is not None
    process.kill()
    wait_until(lambda: not feed.connected, "loss of the connection")
    wait_until(lambda: feed.connected, "new broker", 20)
    assert embedded.running and "ended by itself" in caplog.text
    feed.close()
    embedded.stop()
    assert not embedded.running


def test_a_broker_left_behind_is_ended_by_the_next(embedded: EmbeddedBroker) -> None:
    port = embedded.start()
    left = embedded._process
    assert left is not None
    following = EmbeddedBroker(embedded.kind, port, embedded._dir)
    embedded._stopping.set()  # as if its pm had been killed: nobody watches it
    assert following.start() == port
    wait_until(lambda: left.poll() is not None, "end of the first broker")
    following.stop()


def test_a_taken_port_is_refused_with_the_mend(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        other = EmbeddedBroker(embedded.kind, taken.getsockname()[1], tmp_path / "other")
        with pytest.raises(FeedError, match=r"is taken; set mqtt.port = 0"):
            other.start()


def test_messages_survive_a_restart_of_the_embedded_mosquitto(tmp_path: Path) -> None:
    Mosquitto(tmp_path)  # skips where it is not installed
    broker = EmbeddedBroker("mosquitto", 0, tmp_path / "data")
    section = MqttSection(host="127.0.0.1", port=broker.start())
    feed = MqttFeed(section)
    feed.open()
    feed.close()
    publish(section, numbered(100))
    broker.stop()
    again = EmbeddedBroker("mosquitto", section.port, tmp_path / "data")
    again.start()
    feed = MqttFeed(section)
    feed.open()
    assert numbers(drain(feed, 100)) == list(range(100))
    feed.close()
    again.stop()


def test_an_unknown_process_is_never_ended(tmp_path: Path) -> None:
    """A pid file says little: the number may be another process by now."""
    (tmp_path / "broker.pid").write_text(str(os.getpid()))
    broker = EmbeddedBroker("rumqttd", 0, tmp_path)
    broker.start()
    broker.stop()
    os.kill(os.getpid(), signal.SIG_DFL)  # still here


def test_the_session_outlives_the_connection_as_long_as_configured(broker: Mosquitto) -> None:
    section = broker.section(session_expiry="1s")
    assert section.session_expiry == timedelta(seconds=1)
    feed = MqttFeed(section)
    feed.open()
    feed.close()
    time.sleep(2.5)
    publish(section, numbered(1))
    feed = MqttFeed(section)
    feed.open()
    assert feed.take(1, 0.5) == []
    feed.close()
