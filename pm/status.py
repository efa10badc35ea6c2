"""What the service says of itself on the dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pm.ingest import Ingest
    from pm.records import Records


def status(records: Records, budget: float, ingests: Sequence[Ingest]) -> dict[str, Any]:
    """By label; `threshold` is that of the alert budget, `trouble` why ingest waits, where it is part."""
    said: dict[str, Any] = {}
    champion = records.champion()
    said["champion"] = champion.version if champion else "none yet; train one with pm train"
    if champion is not None:
        thresholds = {float(each): value for each, value in champion.metrics.get("thresholds", {}).items()}
        fitting = [each for each in thresholds if each <= budget]
        if fitting:
            said["threshold"] = thresholds[max(fitting)]
    if ingests:
        counts = [ingest.counts for ingest in ingests]
        said["messages"] = sum(count.messages for count in counts)
        said["readings"] = sum(count.readings for count in counts)
        if dropped := sum(ingest.feed.dropped for ingest in ingests):
            said["messages lost (QoS 0, no room)"] = dropped
        if spooled := sum(count.spooled for count in counts):
            said["messages on disk, waiting for the store"] = spooled
        if troubles := sorted({count.trouble for count in counts if count.trouble}):
            said["trouble"] = "; ".join(troubles)
    said["dead letters"] = records.dead_letter_count()
    return said
