"""A host's memory of edge nodes: births, order, deaths, what waits for what; time is an argument."""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.sparkplug_host import SparkplugHost
from connectors.sparkplug_names import AssetNames
from connectors.sparkplug_nodes import News
from connectors.sparkplug_schema import DataType, Payload
from pm.domain import Point, Silence
from pm.ports import Delivery
from tests.sparkplug_cases import T0, T0_MS, Edge, add_property
from tests.test_sparkplug import payloads

SECOND = 1_000_000
REORDER, BIRTH = 5 * SECOND, 30 * SECOND


class Listener:
    """A host, and what came of everything it heard."""

    def __init__(
        self,
        *,
        asset: str = "{device}",
        node_asset: str = "{node}",
        nodes: Literal["auto", "always", "never"] = "never",
        **options: Any,
    ) -> None:
        names = AssetNames(asset, node_asset, nodes)
        self.host = SparkplugHost(names, reorder_us=REORDER, birth_us=BIRTH, **options)
        self.now = T0
        self.deliveries: list[Delivery] = []
        self.asked: list[tuple[str, str]] = []

    def hear(self, *messages: tuple[str, bytes]) -> Listener:
        for topic, payload in messages:
            self._keep(self.host.hear(topic, payload, self.now))
        return self

    def wait(self, us: int) -> Listener:
        self.now += us
        self._keep(self.host.tick(self.now))
        return self

    def disconnect(self) -> Listener:
        self._keep(self.host.disconnected(self.now))
        return self

    def _keep(self, deliveries: list[Delivery]) -> None:
        self.deliveries += deliveries
        self.asked += self.host.requests()

    @property
    def stored(self) -> list[tuple[str, str, float]]:
        return [(r.asset, p, v) for d in self.deliveries for r in d.readings for p, v in r.values.items()]

    @property
    def values(self) -> list[float]:
        return [value for _, _, value in self.stored]

    @property
    def reasons(self) -> list[str]:
        return [reject.reason for d in self.deliveries for reject in d.rejects]

    @property
    def silences(self) -> list[Silence]:
        return [s for d in self.deliveries if isinstance(d.receipt, News) for s in d.receipt.silences]

    def silent(self) -> dict[str, int]:
        latest = {said.asset: said.since_us for said in self.silences}
        return {asset: since for asset, since in latest.items() if since is not None}


def born(edge: Edge, listener: Listener, *devices: str) -> None:
    listener.hear(edge.nbirth())
    for device in devices:
        listener.hear(edge.dbirth(device, {"x": 0.0, "y": 0.5}))
    listener.deliveries.clear()


def test_a_birth_is_readings_of_its_own_and_explains_the_data_that_follows() -> None:
    edge, listener = Edge(), Listener()
    listener.hear(edge.nbirth(), edge.dbirth("pump", {"x": 1.0, "text": None}, types={"text": DataType.STRING}))
    listener.hear(edge.data("pump", {"x": 2.0}))
    assert listener.stored == [("pump", "x", 1.0), ("pump", "x", 2.0)]
    assert not listener.asked and not listener.reasons and listener.host.counts.births == 2
    assert all(d.receipt.qos == 0 for d in listener.deliveries)  # type: ignore[attr-defined]


def test_sequence_numbers_go_round() -> None:
    edge, listener = Edge(), Listener()
    born(edge, listener, "pump")
    for number in range(600):
        listener.hear(edge.data("pump", {"x": float(number)}, at_ms=T0_MS + number))
    assert listener.values == [float(n) for n in range(600)] and not listener.asked
    assert listener.host.counts.lost == 0


def test_a_birth_may_begin_anywhere_in_the_round() -> None:
    edge, listener = Edge(), Listener()
    payload = Payload(timestamp=T0_MS, seq=255)
    payload.metrics.add(name="bdSeq", datatype=DataType.INT64, long_value=0)
    listener.hear((edge.topic("NBIRTH"), payload.SerializeToString()))
    edge.seq = 0
    listener.hear(edge.dbirth("pump", {"x": 1.0}), edge.data("pump", {"x": 2.0}))
    assert listener.values == [1.0, 2.0] and not listener.asked


def test_messages_out_of_order_are_read_in_order() -> None:
    edge, listener = Edge(), Listener()
    born(edge, listener, "pump")
    one, two, three, four = (edge.data("pump", {"x": float(n)}) for n in range(1, 5))
    listener.hear(one, three).wait(REORDER - 1)
    assert listener.values == [1.0]
    listener.hear(four, two).wait(10 * REORDER)
    assert listener.values == [1.0, 2.0, 3.0, 4.0]
    assert not listener.asked and listener.host.counts.lost == 0 and listener.host.held == 0


def test_a_gap_that_stays_asks_for_births_and_the_waiting_are_read_by_them() -> None:
    edge, listener = Edge(), Listener()
    born(edge, listener, "pump")
    edge.data("pump", {"x": 1.0})  # lost
    listener.hear(edge.data("pump", {"x": 2.0})).wait(REORDER)
    listener.hear(edge.data("pump", {"x": 3.0}))
    assert listener.asked == [("g", "n")] and listener.values == [] and listener.host.counts.lost == 1
    listener.hear(edge.nbirth(at_ms=T0_MS + 6000), edge.dbirth("pump", {"x": 3.5, "y": 0.5}, at_ms=T0_MS + 6000))
    assert sorted(listener.values) == [0.5, 2.0, 3.0, 3.5] and listener.host.held == 0
    listener.hear(edge.data("pump", {"x": 4.0}))
    assert listener.values[-1] == 4.0 and listener.asked == [("g", "n")] and not listener.reasons


def test_an_alias_whose_meaning_changed_with_a_lost_birth_is_not_taken_for_another() -> None:
    edge, listener = Edge(), Listener()
    listener.hear(edge.nbirth(), edge.dbirth("pump", {"x": 0.0, "y": 0.0}))
    listener.deliveries.clear()
    edge.aliases = {("pump", "y"): 1, ("pump", "x"): 2}
    edge.dbirth("pump", {"y": 7.0, "x": 8.0})  # lost
    listener.hear(edge.data("pump", {"y": 9.0})).wait(REORDER)
    listener.hear(edge.nbirth(at_ms=T0_MS + 6000), edge.dbirth("pump", {"y": 7.0, "x": 8.0}, at_ms=T0_MS + 6000))
    assert ("pump", "y", 9.0) in listener.stored and ("pump", "x", 9.0) not in listener.stored


def test_an_edge_that_is_never_born_again_is_read_by_the_birth_it_had() -> None:
    edge, listener = Edge(), Listener()
    born(edge, listener, "pump")
    edge.data("pump", {"x": 1.0})  # lost
    listener.hear(edge.data("pump", {"x": 2.0})).wait(REORDER)
    listener.hear(edge.data("pump", {"x": 3.0})).wait(BIRTH)
    assert listener.values == [2.0, 3.0]
    listener.hear(edge.data("pump", {"x": 4.0}))
    assert listener.values == [2.0, 3.0, 4.0] and not listener.reasons and listener.host.held == 0


def test_many_messages_behind_a_gap_do_not_wait_for_the_time_out() -> None:
    edge, listener = Edge(), Listener()
    born(edge, listener, "pump")
    edge.data("pump", {"x": -1.0})  # lost
    for number in range(300):
        listener.hear(edge.data("pump", {"x": float(number)}))
    assert listener.asked == [("g", "n")]
    listener.wait(BIRTH)
    assert sorted(listener.values) == [float(n) for n in range(300)]


def test_data_before_any_birth_is_held_and_read_by_the_birth_asked_for() -> None:
    edge, listener = Edge(), Listener()
    edge.nbirth()
    edge.dbirth("pump", {"x": 0.0})
    listener.hear(edge.data("pump", {"x": 1.0}), edge.data("pump", {"x": 2.0}))
    assert listener.asked == [("g", "n")] and listener.values == []
    listener.hear(edge.nbirth(at_ms=T0_MS + 50), edge.dbirth("pump", {"x": 3.0}, at_ms=T0_MS + 50))
    assert listener.values == [3.0, 1.0, 2.0] and not listener.reasons


def test_data_that_no_birth_ever_explains_is_a_dead_letter_in_the_end() -> None:
    edge, listener = Edge(), Listener()
    payload = Payload(timestamp=T0_MS, seq=4)
    payload.metrics.add(alias=7, timestamp=T0_MS, double_value=1.0)
    payload.metrics.add(name="own", timestamp=T0_MS, double_value=2.0)
    raw = payload.SerializeToString()
    listener.hear((edge.topic("DDATA", "pump"), raw)).wait(BIRTH - 1)
    assert not listener.reasons and not listener.stored
    listener.wait(1)
    assert listener.stored == [("pump", "own", 2.0)]
    assert listener.reasons == ["no birth names alias 7; let the edge node answer Node Control/Rebirth"]
    assert listener.deliveries[-1].rejects[0].payload == raw and listener.host.held == 0


def test_births_are_asked_for_ever_less_often() -> None:
    edge, listener = Edge(), Listener()
    edge.seq = 7
    for _ in range(100):
        listener.hear(edge.data("pump", {"x": 1.0})).wait(SECOND)
    assert len(listener.asked) == 4  # at 0, 10, 30 and 70 s


def test_a_metric_that_the_birth_forgot_asks_for_another_birth() -> None:
    edge, listener = Edge(), Listener()
    born(edge, listener, "pump")
    listener.hear(edge.data("pump", {"x": 1.0, "new": 2.0}))
    assert listener.stored == [("pump", "x", 1.0)] and listener.asked == [("g", "n")]
    listener.hear(edge.nbirth(at_ms=T0_MS + 1), edge.dbirth("pump", {"x": 1.0, "new": 3.0}, at_ms=T0_MS + 1))
    assert ("pump", "new", 2.0) in listener.stored and not listener.reasons


def test_a_birth_that_its_followers_overtook() -> None:
    edge, listener = Edge(), Listener()
    node, device, data = edge.nbirth(), edge.dbirth("pump", {"x": 1.0}), edge.data("pump", {"x": 2.0})
    listener.hear(device, data, node).hear(edge.data("pump", {"x": 3.0}))
    listener.wait(BIRTH)
    assert sorted(listener.values) == [1.0, 2.0, 3.0] and not listener.reasons


def test_the_death_of_a_node_silences_it_and_its_devices_at_the_hosts_time() -> None:
    edge, listener = Edge(bd_seq=3), Listener(nodes="always")
    listener.hear(edge.nbirth({"load": 0.1}), edge.dbirth("pump", {"x": 1.0}), edge.dbirth("fan", {"x": 1.0}))
    assert listener.silent() == {} and listener.host.alive == 1
    listener.wait(SECOND).hear(edge.ndeath())
    assert listener.silent() == dict.fromkeys(("n", "pump", "fan"), T0 + SECOND) and listener.host.alive == 0
    assert {said.because for said in listener.silences if said.since_us} == {"its edge node's death was published"}


def test_the_death_of_a_device_silences_it_alone_at_the_time_of_the_payload() -> None:
    edge, listener = Edge(), Listener(nodes="always")
    born(edge, listener, "pump", "fan")
    listener.wait(9 * SECOND).hear(edge.ddeath("pump", at_ms=T0_MS + 2000))
    assert listener.silent() == {"pump": T0 + 2 * SECOND}
    listener.hear(edge.dbirth("pump", {"x": 1.0}))
    assert listener.silent() == {} and not listener.asked


@pytest.mark.parametrize(
    ("born_with", "dies_with", "dead"),
    [(3, 3, True), (3, 2, False), (0, 255, False), (255, 255, True), (3, 4, True), (255, 0, True)],
)
def test_a_death_counts_for_its_own_session(born_with: int, dies_with: int, dead: bool) -> None:
    """One before the birth's is the late will of the session before; one after it, of a birth that was not heard."""
    edge, listener = Edge(bd_seq=born_with), Listener()
    born(edge, listener, "pump")
    listener.hear(edge.ndeath(dies_with))
    assert (listener.silent() == {"pump": T0}) is dead
    assert listener.host.counts.stray_deaths == (not dead)


def test_data_after_death_waits_for_a_birth() -> None:
    edge, listener = Edge(), Listener()
    born(edge, listener, "pump")
    listener.hear(edge.ndeath(), edge.data("pump", {"x": 1.0}))
    assert listener.values == [] and listener.asked == [("g", "n")] and "pump" in listener.silent()
    edge.bd_seq = 1
    listener.hear(edge.nbirth(at_ms=T0_MS + 1), edge.dbirth("pump", {"x": 2.0}, at_ms=T0_MS + 1))
    assert listener.values == [2.0, 1.0] and listener.silent() == {}


def test_a_new_session_silences_the_devices_that_are_not_born_in_it() -> None:
    edge, listener = Edge(), Listener()
    born(edge, listener, "pump", "fan")
    edge.bd_seq = 1
    listener.hear(edge.nbirth(), edge.dbirth("pump", {"x": 1.0}))
    assert set(listener.silent()) == {"fan"}


def test_a_lost_connection_silences_everyone_until_they_are_born_again() -> None:
    edge, listener = Edge(), Listener()
    born(edge, listener, "pump")
    listener.wait(SECOND).disconnect()
    assert listener.silent() == {"pump": T0 + SECOND}
    listener.hear(edge.data("pump", {"x": 1.0}))
    assert listener.asked == [("g", "n")]
    listener.hear(edge.nbirth(at_ms=T0_MS + 1), edge.dbirth("pump", {"x": 2.0}, at_ms=T0_MS + 1))
    assert listener.silent() == {} and sorted(listener.values) == [1.0, 2.0]


def test_units_are_told_with_the_birth() -> None:
    edge, listener = Edge(), Listener()
    listener.hear(edge.nbirth())
    payload = Payload(timestamp=T0_MS, seq=1)
    metric = payload.metrics.add(name="speed", alias=1, timestamp=T0_MS, datatype=DataType.DOUBLE, double_value=5.0)
    add_property(metric, "engUnit", type=12, string_value="rpm")
    listener.hear((edge.topic("DBIRTH", "pump"), payload.SerializeToString()))
    assert [d.receipt.points for d in listener.deliveries if d.readings] == [(Point("speed", "rpm"),)]  # type: ignore[attr-defined]


def test_a_node_is_an_asset_where_it_has_no_devices() -> None:
    lonely, parent, listener = Edge(node="lonely"), Edge(node="parent"), Listener(nodes="auto")
    listener.hear(lonely.nbirth({"x": 1.0}), parent.nbirth({"load": 0.5}), parent.dbirth("pump", {"x": 2.0}))
    listener.hear(parent.data("", {"load": 0.6}))
    assert listener.stored == [("pump", "x", 2.0)]
    listener.wait(2 * SECOND).hear(lonely.data("", {"x": 3.0}))
    assert listener.stored == [("pump", "x", 2.0), ("lonely", "x", 1.0), ("lonely", "x", 3.0)]


def test_names_by_template_and_no_name_twice() -> None:
    first, second, listener = Edge("g1", "n"), Edge("g2", "n"), Listener()
    listener.hear(first.nbirth(), first.dbirth("pump", {"x": 1.0}), second.nbirth(), second.dbirth("pump", {"x": 2.0}))
    listener.hear(second.data("pump", {"x": 3.0}))
    assert listener.stored == [("pump", "x", 1.0)]
    assert len(listener.reasons) == 2 and "'pump' is g1/n/pump already" in listener.reasons[0]
    assert "sparkplug.asset" in listener.reasons[0]
    apart = Listener(asset="{group}.{node}.{device}")
    for edge in (Edge("g1", "n"), Edge("g2", "n")):
        apart.hear(edge.nbirth(), edge.dbirth("pump", {"x": 1.0}))
    assert [asset for asset, _, _ in apart.stored] == ["g1.n.pump", "g2.n.pump"]


def test_what_waits_is_bounded() -> None:
    listener = Listener(most_held=2000)
    edge = Edge()
    edge.seq = 9
    for number in range(200):
        listener.hear(edge.data("pump", {"own": float(number)}, at_ms=T0_MS + number))
    assert listener.host.held < 100 and len(listener.stored) + listener.host.held == 200
    listener.wait(BIRTH)
    assert sorted(listener.values) == [float(n) for n in range(200)]


def test_a_damaged_message_is_a_dead_letter_and_the_next_is_read() -> None:
    edge, listener = Edge(), Listener()
    born(edge, listener, "pump")
    listener.hear((edge.topic("DDATA", "pump"), b"\xff\xff"), (edge.topic("NBIRTH"), b"\x18\x80\x02"))
    listener.hear(edge.data("pump", {"x": 1.0}))
    assert listener.values == [1.0] and len(listener.reasons) == 2


def test_other_topics_are_passed_over() -> None:
    listener = Listener()
    for topic in ("spBv1.0/g/NCMD/n", "spBv1.0/g/DCMD/n/d", "spBv1.0/STATE/pm", "spBv1.0/g/NBIRTH/n/d", "x"):
        listener.hear((topic, b"\xff"))
    assert not listener.stored and not listener.reasons and not listener.asked and len(listener.deliveries) == 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_whatever_the_order_every_value_is_stored_or_said(seed: int) -> None:
    """Births, data and deaths of two devices, shuffled near their place, some lost, some twice: what was heard ends in
    readings or dead letters, under its own name."""
    chance = random.Random(seed)
    edge, listener = Edge(), Listener()
    sent: list[tuple[str, bytes, set[tuple[str, str, float]]]] = []
    number = 0.0

    def births() -> None:
        nonlocal number
        sent.append((*edge.nbirth(at_ms=T0_MS + len(sent)), set()))
        for device in ("a", "b"):
            number += 1
            at_ms = T0_MS + len(sent)
            sent.append((*edge.dbirth(device, {"x": number}, at_ms=at_ms), {(device, "x", number)}))

    births()
    for _ in range(chance.randrange(1, 60)):
        what = chance.random()
        number += 1
        if what < 0.05:
            births()
        elif what < 0.08:
            sent.append((*edge.ddeath("a", at_ms=T0_MS + len(sent)), set()))
        elif what < 0.1:
            sent.append((*edge.ndeath(), set()))
            edge.bd_seq = (edge.bd_seq + 1) & 255
            births()
        else:
            device = chance.choice("ab")
            message = edge.data(device, {"x": number}, at_ms=T0_MS + len(sent))
            sent.append((*message, {(device, "x", number)}))
    order = sorted(range(len(sent)), key=lambda n: n + chance.choice((0, 0, 0, 2.5)))
    heard: set[tuple[str, str, float]] = set()
    letters: set[bytes] = set()
    for place in order:
        topic, payload, values = sent[place]
        if chance.random() < 0.1:
            continue
        for _ in range(2 if chance.random() < 0.05 else 1):
            listener.hear((topic, payload))
        heard |= values
        if chance.random() < 0.2:
            listener.wait(chance.randrange(0, 3 * REORDER))
    listener.wait(BIRTH).wait(BIRTH).wait(BIRTH)
    assert listener.host.held == 0
    letters = {reject.payload for d in listener.deliveries for reject in d.rejects}
    said = {value for _, payload, values in sent if payload in letters for value in values}
    assert heard <= set(listener.stored) | said
    assert set(listener.stored) <= heard


_TOPICS = st.sampled_from(
    [f"spBv1.0/{g}/{verb}/n{d}" for g in "gh" for verb in ("NBIRTH", "NDATA", "NDEATH", "NCMD") for d in ("", "/d")]
    + [f"spBv1.0/g/{verb}/n/{d}" for verb in ("DBIRTH", "DDATA", "DDEATH", "DCMD") for d in "de"]
    + ["spBv1.0/STATE/pm", "spBv1.0/g/DDATA//d", "", "/"]
) | st.text(max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_TOPICS, payloads() | st.binary(max_size=40), st.integers(0, 3 * REORDER)), max_size=40))
def test_any_messages_in_any_order_have_an_end(messages: list[tuple[str, bytes, int]]) -> None:
    """Whatever is heard: no exception, no reading without a number, nothing held for ever."""
    listener = Listener(nodes="auto", most_held=1000, max_future_us=600 * SECOND)
    for topic, payload, pause in messages:
        listener.hear((topic, payload)).wait(pause)
    listener.disconnect().wait(BIRTH).wait(BIRTH).wait(2 * SECOND)
    assert listener.host.held == 0 and listener.host._held_bytes == 0
    assert all(value - value == 0 for value in listener.values)
    assert all(reason and "\n" not in reason for reason in listener.reasons)
