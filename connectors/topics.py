"""MQTT topics and what they mean: templates with named parts, and the routes that they make together. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pm.errors import FeedError

ASSET = "asset"
POINT = "point"
MAX_NAME = 200
"""Longest name of an asset or a point, in characters."""

_NAMED = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MAX_BYTES = 65535
_CACHED_TOPICS = 100_000


class MessageKind(StrEnum):
    """What the payload of a topic holds."""

    READINGS = "readings"
    EVENTS = "events"
    CLOCK = "clock"


def name_fault(name: object) -> str | None:
    """Why `name` cannot name an asset or a point, or None when it can."""
    if not isinstance(name, str):
        return "is not text"
    if not name.strip():
        return "is empty"
    if len(name) > MAX_NAME:
        return f"is longer than {MAX_NAME} characters"
    if _CONTROL.search(name):
        return "has control characters"
    return None


@dataclass(frozen=True, slots=True)
class TopicTemplate:
    """A topic with named parts: `plant/{asset}/{point}`, `site/{site}/{line}/{asset}/readings`.

    A part stands for one whole level. `{asset}` is required, `{point}` names the point of a scalar payload, any other
    part is a tag. Raises FeedError where the text is not such a template.
    """

    text: str
    levels: tuple[str | None, ...] = field(init=False, repr=False, compare=False)
    """Each level's literal text, None where a part is named."""
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Named parts in the order of their levels."""

    def __post_init__(self) -> None:
        levels: list[str | None] = []
        names: list[str] = []
        for level in self.text.split("/"):
            if named := _NAMED.fullmatch(level):
                levels.append(None)
                names.append(named[1])
                continue
            if any(mark in level for mark in "{}"):
                self._refuse(
                    f"level {level!r} is neither text nor one named part; write the part alone, as in /{{asset}}/"
                )
            levels.append(level)
        if ASSET not in names:
            self._refuse("it has no {asset}; put {asset} where the topic names the asset")
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            self._refuse(f"{{{doubled[0]}}} stands in it twice; give each part a name of its own")
        if fault := topic_fault("/".join("part" if level is None else level for level in levels)):
            self._refuse(fault)
        object.__setattr__(self, "levels", tuple(levels))
        object.__setattr__(self, "names", tuple(names))

    def _refuse(self, why: str) -> None:
        raise FeedError(f"topic template {self.text!r}: {why}")

    @property
    def filter(self) -> str:
        """The MQTT topic filter that brings every topic of this template."""
        return "/".join("+" if level is None else level for level in self.levels)

    def match(self, topic: str) -> dict[str, str] | None:
        """The named parts of `topic`, or None where it is not of this template."""
        levels = topic.split("/")
        if len(levels) != len(self.levels):
            return None
        found = []
        for mine, theirs in zip(self.levels, levels, strict=True):
            if mine is None:
                found.append(theirs)
            elif mine != theirs:
                return None
        return dict(zip(self.names, found, strict=True))

    def topic(self, **parts: str) -> str:
        """The topic with these parts filled in. Raises FeedError where a part is missing or cannot stand in a topic."""
        remaining = iter(self.names)
        levels = []
        for level in self.levels:
            if level is not None:
                levels.append(level)
                continue
            name = next(remaining)
            value = parts.get(name)
            if value is None:
                raise FeedError(f"topic template {self.text!r}: {{{name}}} is not given; use a template without it")
            if not value or any(mark in value for mark in "/+#\x00"):
                raise FeedError(
                    f"topic template {self.text!r}: {name} {value!r} cannot stand in a topic (empty, or has / + #)"
                )
            levels.append(value)
        return "/".join(levels)


def topic_fault(topic: str) -> str | None:
    """Why `topic` is no topic by the MQTT specification, or None when it is one."""
    if not topic:
        return "it is empty"
    if len(topic.encode("utf-8", "surrogatepass")) > _MAX_BYTES:
        return f"it is longer than {_MAX_BYTES} bytes"
    if _CONTROL.search(topic):
        return "it has control characters"
    if "+" in topic or "#" in topic:
        return "it has a wildcard; name the part instead, as in {line}"
    return None


@dataclass(frozen=True, slots=True)
class Route:
    """Where one topic leads."""

    kind: MessageKind
    parts: Mapping[str, str]

    @property
    def asset(self) -> str:
        return self.parts.get(ASSET, "")

    @property
    def point(self) -> str | None:
        return self.parts.get(POINT)


class Routes:
    """The templates of a feed together. Where several match a topic the most literal one has it.

    So `plant/pump/events` is an event although `plant/{asset}/{point}` matches it too.
    """

    def __init__(self, *, readings: Sequence[str], events: Sequence[str] = (), clock: str | None = None) -> None:
        """Raises FeedError for a bad template and for two templates that no topic can tell apart."""
        templates: list[tuple[TopicTemplate, MessageKind]] = []
        templates += [(TopicTemplate(text), MessageKind.READINGS) for text in readings]
        templates += [(TopicTemplate(text), MessageKind.EVENTS) for text in events]
        by_filter: dict[str, str] = {}
        for template, kind in templates:
            if kind is MessageKind.EVENTS and POINT in template.names:
                raise FeedError(
                    f"topic template {template.text!r}: events have no {{point}}; name that level otherwise"
                )
            if (other := by_filter.setdefault(template.filter, template.text)) != template.text:
                raise FeedError(
                    f"topic templates {other!r} and {template.text!r} match the same topics; keep one of them"
                )
        if len({(t.text, k) for t, k in templates}) != len({t.text for t, _ in templates}):
            both = sorted(set(readings) & set(events))
            raise FeedError(f"topic template {both[0]!r} is named for readings and for events; keep one of them")
        if clock is not None and (fault := topic_fault(clock)):
            raise FeedError(f"clock topic {clock!r}: {fault}")
        self._templates = sorted(templates, key=lambda pair: _literalness(pair[0]), reverse=True)
        self._clock = clock
        self._cache: dict[str, Route | None] = {}

    @property
    def filters(self) -> tuple[str, ...]:
        """The fewest filters that bring every topic once: one that another covers is left out.

        A broker may deliver a message once for each of a client's filters that match it.
        """
        wanted = list(dict.fromkeys(template.filter for template, _ in self._templates))
        if self._clock is not None and self._clock not in wanted:
            wanted.append(self._clock)
        return tuple(f for f in wanted if not any(_covers(other, f) for other in wanted if other != f))

    @property
    def one_filter(self) -> str:
        """One filter that brings every topic (and others): for brokers that keep order within a subscription only."""
        filters = self.filters
        if len(filters) == 1:
            return filters[0]
        common: list[str] = []
        for levels in zip(*(f.split("/") for f in filters), strict=False):
            if len(set(levels)) > 1:
                break
            common.append(levels[0])
        return "/".join([*common, "#"])

    def resolve(self, topic: str) -> Route | None:
        """Where `topic` leads, or None where no template matches."""
        try:
            return self._cache[topic]
        except KeyError:
            pass
        route = self._resolve(topic)
        if len(self._cache) >= _CACHED_TOPICS:  # someone invents topics: memory stays bounded
            self._cache.clear()
        self._cache[topic] = route
        return route

    def _resolve(self, topic: str) -> Route | None:
        if topic == self._clock:
            return Route(MessageKind.CLOCK, {})
        for template, kind in self._templates:
            if (parts := template.match(topic)) is not None:
                return Route(kind, parts)
        return None


def _literalness(template: TopicTemplate) -> tuple[int, tuple[bool, ...]]:
    literal = tuple(level is not None for level in template.levels)
    return sum(literal), literal


def _covers(wide: str, narrow: str) -> bool:
    """Whether every topic of `narrow` is one of `wide` (single-level wildcards only)."""
    theirs = narrow.split("/")
    ours = wide.split("/")
    return len(ours) == len(theirs) and all(a in ("+", b) for a, b in zip(ours, theirs, strict=True))
