"""What surrounds the messages of an MQTT session: its version, its security, its share, its subscriptions, silence."""

from __future__ import annotations

import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho

from connectors.mqtt import MqttFeed, MqttPublisher
from connectors.mqtt_bulk import BulkClient
from connectors.mqtt_filters import FilterMemory
from connectors.mqtt_session import MqttSession
from pm.config import Config, MqttSection
from pm.edges import feeds
from pm.errors import FeedError
from pm.ports import Delivery
from tests.servers.mosquitto import (
    PASSWORD,
    USER,
    Mosquitto,
    make_certificate,
    make_certificates,
    mosquitto,
)
from tests.servers.programs import free_port, wait_until

TRANSPORTS = ("bulk", "paho")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path) as running:
        yield running


def publish(section: MqttSection, numbers: range, topic: str = "plant/a/n") -> None:
    publisher = MqttPublisher(section)
    publisher.open()
    for number in numbers:
        publisher.publish(topic, b"%d" % number)
    publisher.flush()
    publisher.close()


def drain(feed: Any, count: int, seconds: float = 15.0) -> list[Delivery]:
    taken: list[Delivery] = []
    deadline = time.monotonic() + seconds
    while len(taken) < count and time.monotonic() < deadline:
        taken += feed.take(count - len(taken), 0.2)
    return taken


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [int(value) for delivery in deliveries for r in delivery.readings for value in r.values.values()]


class OldBroker:
    """Before a real Mosquitto: refuses MQTT 5 as a broker of 3.1.1 must (3.1.2.2), and passes everything else on."""

    def __init__(self, behind: int) -> None:
        self.port = free_port()
        self.refused = 0
        self._behind = behind
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        hello = client.recv(4096)
        if hello[8] == 5:
            self.refused += 1
            client.sendall(b"\x20\x02\x00\x01")
            client.close()
            return
        server = socket.create_connection(("127.0.0.1", self._behind))
        server.sendall(hello)
        while True:
            for ready in select.select([client, server], [], [])[0]:
                piece = ready.recv(65536)
                if not piece:
                    client.close()
                    server.close()
                    return
                (server if ready is client else client).sendall(piece)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_broker_that_refuses_mqtt_5_is_spoken_to_in_3_1_1(broker: Mosquitto, transport: str) -> None:
    old = OldBroker(broker.port)
    section = broker.section(port=old.port, transport=transport)
    feed = MqttFeed(section)
    feed.open()
    wait_until(lambda: feed.connected, "connection")
    publish(section, range(10))
    taken = drain(feed, 10)
    assert numbers(taken) == list(range(10)) and feed.link.protocol == "MQTT 3.1.1"
    feed.acknowledge(taken[:6])
    feed.close()
    publish(broker.section(), range(10, 12))

    again = MqttFeed(broker.section(version="3.1.1", transport=transport))  # and by configuration
    again.open()
    assert numbers(drain(again, 6)) == [6, 7, 8, 9, 10, 11] and again.link.protocol == "MQTT 3.1.1"
    again.close()
    old.close()
    assert old.refused == 2  # once each by feed and publisher: the client that fell back stays with 3.1.1


def test_a_broker_that_must_speak_5_and_does_not_is_refused(broker: Mosquitto) -> None:
    old = OldBroker(broker.port)
    with pytest.raises(FeedError, match=r"Unsupported protocol version; the broker must speak MQTT 5 or 3\.1\.1"):
        MqttFeed(broker.section(port=old.port, version="5")).open()
    old.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_processes_of_one_group_divide_the_messages(broker: Mosquitto, transport: str) -> None:
    members = [MqttFeed(broker.section(client_id=f"pm-{n}", share="plant", transport=transport)) for n in range(2)]
    for member in members:
        member.open()
    publish(broker.section(), range(40))
    wait_until(lambda: sum(member.waiting for member in members) == 40, "every message")
    found = [numbers(drain(member, member.waiting)) for member in members]
    assert all(found) and sorted(found[0] + found[1]) == list(range(40))
    for member in members:
        member.close()


def test_a_group_cannot_follow_plant_time_of_the_feed(broker: Mosquitto) -> None:
    with pytest.raises(FeedError, match=r'set mqtt\.share = "" or clock\.source = "wall"'):
        MqttFeed(broker.section(share="plant"), clock_topic="pm/clock")


def test_several_brokers_are_heard_each_with_its_own_topics(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with mosquitto(folders[0]) as one, mosquitto(folders[1], password=True) as two:
        (tmp_path / "password").write_text(PASSWORD)
        more = {
            "host": "127.0.0.1",
            "port": two.port,
            "username": USER,
            "password_file": str(tmp_path / "password"),
            "readings": ["line/{asset}/{point}"],
        }
        config = Config.model_validate(
            {
                "mqtt": {"host": "127.0.0.1", "port": one.port, "more": [more]},
                "models": {"dir": str(tmp_path / "models")},
            }
        )
        opened = feeds(config, config.mqtt, one_subscription=False)
        for feed in opened:
            feed.open()
        publish(one.section(), range(3))
        publish(two.section(username=USER, password=PASSWORD), range(3, 6), "line/b/n")
        assert [numbers(drain(feed, 3)) for feed in opened] == [[0, 1, 2], [3, 4, 5]]
        for feed in opened:
            feed.close()
        with pytest.raises(FeedError, match="follows one broker"):
            feeds(config.model_copy(update={"clock": config.clock.model_copy(update={"source": "feed"})}), config.mqtt,
                  one_subscription=False)  # fmt: skip


def test_a_change_of_topics_ends_the_old_subscriptions(broker: Mosquitto, tmp_path: Path) -> None:
    memory = tmp_path / "subscriptions"
    first = MqttFeed(broker.section(readings=["old/{asset}/{point}", "plant/{asset}/{point}"]), memory=memory)
    first.open()
    first.close()
    publish(broker.section(), range(1), "old/a/n")  # kept by the broker while nobody listens
    second = MqttFeed(broker.section(readings=["plant/{asset}/{point}"]), memory=memory)
    second.open()
    second.acknowledge(drain(second, 1))
    wait_until(lambda: FilterMemory(memory, f"pm-ingest@127.0.0.1:{broker.port}").recall() == {"plant/+/+"}, "memory")
    publish(broker.section(), range(1, 3), "old/a/n")
    publish(broker.section(), range(3, 5))
    assert numbers(drain(second, 2)) == [3, 4]
    assert second.link.messages == 3  # the one that was kept, which no template wants, and these two
    second.close()


def test_a_memory_that_is_damaged_costs_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = FilterMemory(tmp_path, "a/b@host:1")
    memory.keep(["plant/+"])
    (path,) = tmp_path.iterdir()
    assert FilterMemory(tmp_path, "a/b@host:1").recall() == {"plant/+"}
    path.write_text("[")
    assert FilterMemory(tmp_path, "a/b@host:1").recall() == frozenset()
    assert "subscriptions of before stay with the broker" in caplog.text


def test_a_connection_that_stands_and_is_silent_is_told_and_counted(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    now = [0.0]
    feed = MqttFeed(broker.section(silent_after="10m"), monotonic=lambda: now[0])
    feed.open()
    now[0] = 599.0
    feed.take(1, 0.01)
    assert not feed.link.silent
    for _ in range(2):
        now[0] += 2
        feed.take(1, 0.01)
    assert feed.link.silent and feed.link.silences == 1
    publish(broker.section(), range(1))
    drain(feed, 1)
    assert not feed.link.silent and feed.link.silences == 1
    told = [r.getMessage().partition(": ")[2] for r in caplog.records if "message" in r.getMessage()]
    assert told == [
        "connected, and no message for 10m (mqtt.silent_after); check that the plant publishes on plant/+/+, "
        "and the broker's access list",
        "messages come again",
    ]
    feed.close()


def test_the_waits_between_attempts_grow_and_differ() -> None:
    class Waits(paho.Client):
        def reconnect_delay_set(self, min_delay: float = 1, max_delay: float = 120) -> None:  # type: ignore[override]
            assert min_delay == max_delay
            waits.append(min_delay)

    waits: list[float] = []
    session = MqttSession(
        MqttSection(host="127.0.0.1", port=free_port()),
        client_id="x",
        clean_start=True,
        make=lambda **o: Waits(paho.CallbackAPIVersion.VERSION2, **o),
        prepare=lambda _: None,
        on_open=lambda _: None,
        chance=random.Random(1),
    )
    for _ in range(8):
        session._failed(session.client, None)
    bounds = [1, 2, 4, 8, 16, 30, 30, 30]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert waits[5] != waits[6] != waits[7]


def test_two_services_of_one_client_id_are_told(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    first = MqttFeed(broker.section())
    first.open()
    second = MqttFeed(broker.section())
    second.open()
    wait_until(lambda: "connecting as 'pm-ingest': give each process its own mqtt.client_id" in caplog.text, "a word")
    first.close()
    second.close()


def test_retained_messages_come_once_and_a_last_will_is_read(broker: Mosquitto) -> None:
    """A device that dies is told by its last will, on the topics of the plant like any other message."""
    section = broker.section(events=["plant/{asset}/events"])
    keeper = MqttPublisher(section)
    keeper.open()
    keeper.publish("plant/a/readings", b'{"time":1795428000,"values":{"n":1}}', retain=True)
    keeper.flush()
    feed = MqttFeed(section)
    feed.open()
    device = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    device.will_set("plant/a/events", b'{"time":1795428001,"kind":"error","code":"lost"}', qos=1)
    device.connect("127.0.0.1", broker.port)
    device.loop_start()
    wait_until(device.is_connected, "device")
    connection = device.socket()
    assert connection is not None
    connection.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
    taken = drain(feed, 2)
    assert numbers(taken) == [1] and [e.code for d in taken for e in d.events] == ["lost"]
    feed.acknowledge(taken)
    device.loop_stop()
    feed.close()
    again = MqttFeed(section)  # the subscription is there already: what is retained does not come again
    again.open()
    assert again.take(1, 0.3) == []
    again.close()
    keeper.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_tls_is_verified(tmp_path: Path, transport: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_certificates(other)
    with mosquitto(tmp_path, tls=True) as broker:
        ca = str(broker.ca_file)
        trusted = broker.section(tls=True, host="localhost", ca_file=ca, transport=transport)
        feed = MqttFeed(trusted)
        feed.open()
        publish(trusted, range(2000))  # more than one record of TLS at once
        assert numbers(drain(feed, 2000)) == list(range(2000))
        feed.close()
        for changes, why in [
            ({"host": "127.0.0.1", "ca_file": ca}, r"not trusted \(IP address mismatch.*mqtt\.host"),
            ({"host": "localhost"}, "not trusted .unable to get local issuer|not trusted .self.signed"),
            ({"host": "localhost", "ca_file": str(other / "ca.crt")}, r"not trusted .*set mqtt\.ca_file"),
            ({"host": "localhost", "ca_file": str(other / "none.crt")}, "cannot be used"),
        ]:
            with pytest.raises(FeedError, match=why):
                MqttFeed(broker.section(tls=True, transport=transport, **changes)).open()


@pytest.mark.parametrize(
    ("host", "days", "why"),
    [("localhost", -1, "certificate has expired"), ("elsewhere.example", 2, "Hostname mismatch")],
)
def test_a_certificate_that_expired_or_names_another_host_is_refused(
    tmp_path: Path, host: str, days: int, why: str
) -> None:
    broker = Mosquitto(tmp_path, tls=True)
    make_certificate(tmp_path, "server", host, days=days)
    broker.start()
    with pytest.raises(FeedError, match=why) as caught:
        MqttFeed(broker.section(tls=True, host="localhost", ca_file=str(broker.ca_file))).open()
    assert not caught.value.retryable and "\n" not in str(caught.value)
    broker.stop()


def test_a_certificate_that_expires_while_the_connection_is_down_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Mosquitto(tmp_path, tls=True)
    broker.start()
    feed = MqttFeed(broker.section(tls=True, host="localhost", ca_file=str(broker.ca_file)))
    feed.open()
    broker.stop()
    make_certificate(tmp_path, "server", days=-1)
    broker.start()
    wait_until(lambda: "certificate has expired" in caplog.text, "a word", 10)
    assert not feed.connected
    feed.close()
    broker.stop()


def test_a_broker_that_asks_for_client_certificates_gets_one(tmp_path: Path) -> None:
    with mosquitto(tmp_path, tls=True, client_certificates=True) as broker:
        make_certificate(tmp_path, "client", "pm")
        secured = {"tls": True, "host": "localhost", "ca_file": str(broker.ca_file)}
        mine = {"cert_file": str(tmp_path / "client.crt"), "key_file": str(tmp_path / "client.key")}
        feed = MqttFeed(broker.section(**secured, **mine))
        feed.open()
        publish(broker.section(**secured, **mine), range(3))
        assert numbers(drain(feed, 3)) == [0, 1, 2]
        assert isinstance(feed._session.client, BulkClient)
        feed.close()
        without = MqttFeed(broker.section(**secured))
        try:
            without.open()
        except FeedError as error:
            assert "certificate" in str(error)
        else:
            assert not without.connected
            without.close()
