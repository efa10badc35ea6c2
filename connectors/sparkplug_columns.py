"""A data payload read by columns: the quick way, for payloads as nearly all are. Pure.

The values of one protobuf field come as one list, in the order of their metrics. Which metric each belongs to follows
from the birth, which says (and shows) in what field each metric is sent. A payload that does not fit exactly (a metric
unknown, null, twice or of another field, a property, not a number) is not read here, but metric by metric. Of each
birth's data the first payloads are read in both ways, and only a sender for whom both are equal is read by columns on.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Final, NamedTuple

from connectors.sparkplug_values import FIELDS, Metric

_KNOWN_PLANS: Final = 1000
CHECKED: Final = 3
"""Payloads of a birth's data that are read in both ways."""


class _Part(NamedTuple):
    """The metrics of a payload that are sent in one field."""

    field: str
    sent: int
    """How many they are, those passed over included."""
    points: tuple[str, ...]
    places: tuple[int, ...]
    """Of the points among the metrics of the payload."""
    kept: Any
    """Takes the points' values out of the field's; None where it is all of them."""
    readers: tuple[Any, ...] | None
    """What makes numbers of them; None where they are numbers already."""


Plan = tuple[_Part, ...]
"""A part for each field."""
_UNMADE: Final[Plan] = ()


class Plans:
    """How payloads with the same metrics in the same order are read, by their aliases or names. Of one birth."""

    def __init__(self, by_alias: dict[int, Metric], by_name: dict[str, Metric]) -> None:
        self._known: tuple[dict[Any, Metric], dict[Any, Metric]] = (by_alias, by_name)
        self._plans: dict[tuple[Any, ...], Plan | None] = {}
        self.checked = 0
        """Payloads read in both ways so far, with the same result."""
        self.trusted = True
        """False once a payload came out otherwise."""

    def read(self, columns: Any, size: int) -> dict[int, dict[str, float]] | None:
        """Values by the stamp of their metric (milliseconds, 0 for none); None where it is not read this way.

        size: bytes of the payload, which tell how many metrics it has.
        """
        metrics = columns.metrics
        aliases, names = tuple(metrics.alias), metrics.name
        if names:
            if aliases:
                return None
            aliases = tuple(names)
        plan = self._plans.get(aliases, _UNMADE)
        if plan is _UNMADE:
            plan = self._make(aliases, bool(names))
        if plan is None or metrics.properties or metrics.is_null or not _alone(columns, size, len(aliases)):
            return None
        values: dict[str, float] = {}
        for part in plan:
            sent = getattr(metrics, part.field)
            if len(sent) != part.sent:
                return None
            if not part.points:
                continue
            numbers = sent if part.kept is None else part.kept(sent)
            if part.readers is not None:
                numbers = [reader(number) for reader, number in zip(part.readers, numbers, strict=True)]
                if None in numbers:
                    return None
            if values:
                values.update(zip(part.points, numbers, strict=True))
            else:
                values = dict(zip(part.points, numbers, strict=True))
        total = sum(values.values())
        if total - total != 0.0:  # not a number, or infinite, or too large a sum to tell
            return None
        return self._timed(metrics.timestamp, plan, values, len(aliases))

    @staticmethod
    def _timed(stamps: Any, plan: Plan, values: dict[str, float], count: int) -> dict[int, dict[str, float]] | None:
        if not values:
            return {}
        if not stamps:
            return {0: values}
        stamps = tuple(stamps)
        if len(stamps) != count:
            return None
        if stamps.count(stamps[0]) == count:
            return {stamps[0]: values}
        groups: dict[int, dict[str, float]] = {}
        for part in plan:
            for point, place in zip(part.points, part.places, strict=True):
                groups.setdefault(stamps[place], {})[point] = values[point]
        return groups

    def _make(self, called: tuple[Any, ...], by_name: bool) -> Plan | None:
        plan = _plan([self._known[by_name].get(name) for name in called])
        if len(self._plans) >= _KNOWN_PLANS:
            self._plans.clear()
        self._plans[called] = plan
        return plan


def _alone(columns: Any, size: int, count: int) -> bool:
    """Whether the payload's metrics are the `count` that have a name or alias, and no others.

    A metric without either would lend its value or stamp to its neighbour. Each stands behind a tag and a length, two
    bytes where it is shorter than 128; by columns all of them stand behind one. Longer ones do not fit either.
    """
    merged = columns.metrics.ByteSize()
    return bool(size - columns.ByteSize() + 1 + max(1, -(-merged.bit_length() // 7)) == 2 * count)


def _plan(metrics: list[Metric | None]) -> Plan | None:
    """None where a metric is unknown, or twice, or it is not known in what field it is sent."""
    if not metrics or any(metric is None or not metric.attribute for metric in metrics):
        return None
    known = [metric for metric in metrics if metric is not None]
    points = [metric.point for metric in known if metric.point is not None]
    if len(points) != len(set(points)):
        return None
    parts = []
    for field in FIELDS:
        sent = [(place, metric) for place, metric in enumerate(known) if metric.attribute == field]
        kept = [n for n, (_, metric) in enumerate(sent) if metric.point is not None]
        mine = [(place, metric) for place, metric in sent if metric.point is not None]
        readers = tuple(metric.reader or float for _, metric in mine)
        parts.append(
            _Part(
                field,
                len(sent),
                tuple(str(metric.point) for _, metric in mine),
                tuple(place for place, _ in mine),
                None if len(kept) == len(sent) else _taker(kept),
                None if all(metric.reader is None for _, metric in mine) else readers,
            )
        )
    return tuple(parts)


def _taker(kept: list[int]) -> Any:
    if len(kept) > 1:
        return itemgetter(*kept)
    return lambda sent: [sent[place] for place in kept]
