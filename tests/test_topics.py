from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.topics import MessageKind, Routes, TopicTemplate
from pm.errors import FeedError

READINGS = ("plant/{asset}/readings", "plant/{asset}/{point}")
EVENTS = ("plant/{asset}/events",)

LEVEL = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="/+#{}"), min_size=1, max_size=8
)


def test_named_parts_are_matched() -> None:
    template = TopicTemplate("site/{site}/{line}/{asset}/readings")
    assert template.filter == "site/+/+/+/readings"
    assert template.match("site/north/3/pump 7/readings") == {"site": "north", "line": "3", "asset": "pump 7"}
    assert template.match("site/north/3/pump 7/events") is None
    assert template.match("site/north/3/pump 7") is None
    assert template.match("site/north/3/pump 7/readings/x") is None


@given(
    levels=st.lists(st.one_of(LEVEL, st.none()), max_size=4), asset=LEVEL, parts=st.lists(LEVEL, min_size=4, max_size=4)
)
def test_a_topic_written_is_the_topic_matched(levels: list[str | None], asset: str, parts: list[str]) -> None:
    names = {f"part{i}": parts[i] for i, level in enumerate(levels) if level is None}
    text = "/".join([*(f"{{part{i}}}" if level is None else level for i, level in enumerate(levels)), "{asset}"])
    template = TopicTemplate(text)
    assert template.match(template.topic(asset=asset, **names)) == {"asset": asset, **names}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("plant/readings", "no {asset}"),
        ("plant/{asset}/{asset}", "twice"),
        ("plant/{asset}-x/readings", "neither text nor one named part"),
        ("plant/{asset}/{Point}", "neither text nor one named part"),
        ("plant/+/{asset}", "wildcard"),
        ("plant/{asset}/#", "wildcard"),
        ("plant\x00/{asset}", "control characters"),
        ("plant/{asset}/" + "x" * 66_000, "longer than 65535"),
    ],
)
def test_what_is_no_template_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(FeedError, match=why):
        TopicTemplate(text)


@pytest.mark.parametrize("asset", ["", "a/b", "a+", "#"])
def test_an_asset_that_cannot_stand_in_a_topic_is_refused(asset: str) -> None:
    with pytest.raises(FeedError, match="cannot stand in a topic"):
        TopicTemplate("plant/{asset}/readings").topic(asset=asset)


def test_a_part_that_is_not_given_is_named() -> None:
    with pytest.raises(FeedError, match=r"\{line\} is not given"):
        TopicTemplate("plant/{line}/{asset}").topic(asset="a")


def test_the_most_literal_template_has_the_topic() -> None:
    routes = Routes(readings=READINGS, events=EVENTS, clock="plant/pm/clock")
    found = {
        topic: (route.kind, route.asset, route.point)
        for topic in ("plant/a/readings", "plant/a/events", "plant/a/volt", "plant/pm/clock")
        if (route := routes.resolve(topic))
    }
    assert found == {
        "plant/a/readings": (MessageKind.READINGS, "a", None),
        "plant/a/events": (MessageKind.EVENTS, "a", None),
        "plant/a/volt": (MessageKind.READINGS, "a", "volt"),
        "plant/pm/clock": (MessageKind.CLOCK, "", None),
    }
    assert routes.resolve("other/a/readings") is None
    assert routes.resolve("plant/a") is None


def test_earlier_literal_levels_decide_between_equals() -> None:
    routes = Routes(readings=["{site}/{asset}/readings", "north/{asset}/{point}"])
    route = routes.resolve("north/a/readings")
    assert route is not None and route.point == "readings"


def test_each_topic_is_subscribed_to_once() -> None:
    assert Routes(readings=READINGS, events=EVENTS, clock="pm/clock").filters == ("plant/+/+", "pm/clock")
    assert Routes(readings=READINGS, events=EVENTS).filters == ("plant/+/+",)
    assert set(Routes(readings=["a/{asset}/x"], events=["a/{asset}/y"]).filters) == {"a/+/x", "a/+/y"}


def test_one_filter_for_brokers_that_keep_order_within_one_only() -> None:
    assert Routes(readings=READINGS, events=EVENTS, clock="pm/clock").one_filter == "#"
    assert Routes(readings=READINGS, events=EVENTS, clock="plant/clock").one_filter == "plant/#"
    assert Routes(readings=READINGS, events=EVENTS).one_filter == "plant/+/+"


@pytest.mark.parametrize(
    ("readings", "events", "clock", "why"),
    [
        (["plant/{asset}/{point}", "plant/{line}/{asset}"], [], None, "match the same topics"),
        (["plant/{asset}/x"], ["plant/{asset}/x"], None, "for readings and for events"),
        (["plant/{asset}/{point}"], ["plant/{asset}/{point}"], None, "events have no"),
        (["plant/{asset}"], [], "pm/+", "wildcard"),
        (["plant/{asset}"], [], "", "empty"),
    ],
)
def test_routes_that_cannot_be_told_apart_are_refused(
    readings: list[str], events: list[str], clock: str | None, why: str
) -> None:
    with pytest.raises(FeedError, match=why):
        Routes(readings=readings, events=events, clock=clock)


def test_invented_topics_do_not_fill_the_memory() -> None:
    routes = Routes(readings=READINGS)
    for number in range(120_000):
        routes.resolve(f"plant/a{number}/readings")
    assert len(routes._cache) <= 100_000


@given(st.text(max_size=40))
def test_any_topic_is_routed_or_not(topic: str) -> None:
    route = Routes(readings=READINGS, events=EVENTS, clock="pm/clock").resolve(topic)
    assert (route is not None) == (topic == "pm/clock" or (topic.startswith("plant/") and topic.count("/") == 2))
