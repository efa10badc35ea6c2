"""MQTT topics and what they mean: templates with named parts, and the routes that they make together. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from pm.domain import Doubtful, Reading
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

    A part stands for one whole level. `{asset}` is required unless `needs` says otherwise, `{point}` names the point of
    a scalar payload, any other part is a tag. Raises FeedError where the text is not such a template.
    """

    text: str
    needs: tuple[str, ...] = field(default=(ASSET,), repr=False, compare=False)
    """Parts that must be there: those that name the asset."""
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
        for part in self.needs:
            if part not in names:
                self._refuse(f"it has no {{{part}}}; put {{{part}}} where the topic names the {part}")
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
class AssetRule:
    """How an asset is named out of a topic's parts: `{asset}`, `{line}-{asset}`. Raises FeedError for another text."""

    text: str = "{asset}"
    parts: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """The parts that it takes, in order."""

    def __post_init__(self) -> None:
        rest = _NAMED.sub("", self.text)
        if "{" in rest or "}" in rest or not _NAMED.search(self.text):
            raise FeedError(
                f'asset {self.text!r} names no part of a topic; write it like "{{asset}}" or "{{line}}-{{asset}}"'
            )
        object.__setattr__(self, "parts", tuple(_NAMED.findall(self.text)))

    def name(self, parts: Mapping[str, str]) -> str:
        return _NAMED.sub(lambda part: parts[part[1]], self.text)


class Form(Protocol):
    """Reads the payloads of topics whose payloads are not of pm's own form: `connectors.mapping.MappedForm`."""

    def parse(
        self, payload: bytes, asset: str, point: str | None, received_us: int, doubtful: list[Doubtful] | None = None
    ) -> tuple[Reading, ...]: ...


@dataclass(frozen=True, slots=True)
class MappedTopic:
    """A template of readings with a form of its own."""

    template: str
    form: Form
    asset: str = "{asset}"
    """How the asset is named; "" where the payload names it."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags beside those of the topic's parts."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where one topic leads."""

    kind: MessageKind
    asset: str = ""
    """"" where no topic names it."""
    point: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    """What the topic says beside asset and point, sorted."""
    form: Form | None = None
    """Reads the payload; None where it is of pm's own form."""


class Routes:
    """The templates of a feed together. Where several match a topic the most literal one has it.

    So `plant/pump/events` is an event although `plant/{asset}/{point}` matches it too.
    """

    def __init__(
        self,
        *,
        readings: Sequence[str],
        events: Sequence[str] = (),
        clock: str | None = None,
        asset: str = "{asset}",
        mapped: Sequence[MappedTopic] = (),
    ) -> None:
        """Raises FeedError for a bad template and for two templates that no topic can tell apart.

        asset: how assets are named out of the parts of `readings` and `events`.
        """
        rule = AssetRule(asset)
        leads = [_Lead(TopicTemplate(text, rule.parts), MessageKind.READINGS, rule) for text in readings]
        leads += [_Lead(TopicTemplate(text, rule.parts), MessageKind.EVENTS, rule) for text in events]
        for one in mapped:
            own = AssetRule(one.asset) if one.asset else None
            template = TopicTemplate(one.template, own.parts if own else ())
            leads.append(_Lead(template, MessageKind.READINGS, own, one.form, tuple(sorted(one.tags.items()))))
        by_filter: dict[str, str] = {}
        for lead in leads:
            template = lead.template
            if lead.kind is MessageKind.EVENTS and POINT in template.names:
                raise FeedError(
                    f"topic template {template.text!r}: events have no {{point}}; name that level otherwise"
                )
            if (other := by_filter.setdefault(template.filter, template.text)) != template.text:
                raise FeedError(
                    f"topic templates {other!r} and {template.text!r} match the same topics; keep one of them"
                )
        means: dict[str, tuple[MessageKind, Form | None]] = {}
        for lead in leads:
            meant = (lead.kind, lead.form)
            if means.setdefault(lead.template.text, meant) != meant:
                other_kind = means[lead.template.text][0] if lead.form is None else "a mapping"
                raise FeedError(
                    f"topic template {lead.template.text!r} is named for {other_kind} and for {lead.kind}; "
                    "keep one of them"
                )
        if clock is not None and (fault := topic_fault(clock)):
            raise FeedError(f"clock topic {clock!r}: {fault}")
        self._leads = sorted(leads, key=lambda lead: _literalness(lead.template), reverse=True)
        self._clock = clock
        self._cache: dict[str, Route | None] = {}

    @property
    def filters(self) -> tuple[str, ...]:
        """The fewest filters that bring every topic once: one that another covers is left out.

        A broker may deliver a message once for each of a client's filters that match it.
        """
        wanted = list(dict.fromkeys(lead.template.filter for lead in self._leads))
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
            return Route(MessageKind.CLOCK)
        for lead in self._leads:
            if (parts := lead.template.match(topic)) is not None:
                return lead.route(parts)
        return None


@dataclass(frozen=True, slots=True)
class _Lead:
    """What a template leads to."""

    template: TopicTemplate
    kind: MessageKind
    asset: AssetRule | None
    form: Form | None = None
    tags: tuple[tuple[str, str], ...] = ()

    def route(self, parts: Mapping[str, str]) -> Route:
        tags = {name: value for name, value in parts.items() if name not in (ASSET, POINT) and not name_fault(value)}
        asset = self.asset.name(parts) if self.asset else ""
        return Route(self.kind, asset, parts.get(POINT), tuple(sorted({**tags, **dict(self.tags)}.items())), self.form)


def _literalness(template: TopicTemplate) -> tuple[int, tuple[bool, ...]]:
    literal = tuple(level is not None for level in template.levels)
    return sum(literal), literal


def _covers(wide: str, narrow: str) -> bool:
    """Whether every topic of `narrow` is one of `wide` (single-level wildcards only)."""
    theirs = narrow.split("/")
    ours = wide.split("/")
    return len(ours) == len(theirs) and all(a in ("+", b) for a, b in zip(ours, theirs, strict=True))
