"""The live table of `pm ingest --watch`, and the same as lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group
from rich.table import Table

from pm.watch import AssetRow, FeedRow

_COLOURS = {"connected": "green", "silent": "yellow", "away": "red", "spooling": "yellow", "stopped": "red"}


def table(feeds: Sequence[FeedRow], busiest: Sequence[AssetRow], silent: Sequence[AssetRow], now: datetime) -> Group:
    """Feeds first, then assets."""
    shown = Table(title=f"ingest, {now:%Y-%m-%d %H:%M:%SZ}", title_justify="left", expand=False)
    shown.add_column("feed")
    shown.add_column("state")
    columns = ("messages/s", "readings/s", "delay", "queue", "unacked", "spool", "dead letters", "dropped")
    for name in columns:
        shown.add_column(name, justify="right")
    for row in feeds:
        feed = row.now
        shown.add_row(
            feed.name,
            f"[{_COLOURS[feed.state]}]{feed.state}[/]",
            f"{row.messages_per_second:,.0f}",
            f"{row.readings_per_second:,.0f}",
            f"{feed.delay_ms:,.0f} ms",
            *(f"{n:,}" for n in (feed.queue, feed.unacknowledged, feed.spooled, feed.dead_letters, feed.dropped)),
        )
    return Group(shown, _assets("busiest assets", busiest, now), _assets("most silent assets", silent, now))


def line(row: FeedRow, now: datetime) -> str:
    """One feed as a line of text."""
    feed = row.now
    return (
        f"{now:%Y-%m-%dT%H:%M:%SZ} {feed.name}: {feed.state}, {row.messages_per_second:.0f} messages/s, "
        f"{row.readings_per_second:.0f} readings/s, delay {feed.delay_ms:.0f} ms, queue {feed.queue}, "
        f"unacknowledged {feed.unacknowledged}, spool {feed.spooled}, dead letters {feed.dead_letters}, "
        f"dropped {feed.dropped}"
    )


def _assets(title: str, rows: Sequence[AssetRow], now: datetime) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("asset")
    shown.add_column("readings", justify="right")
    shown.add_column("last reading", justify="right")
    for row in rows:
        shown.add_row(row.name, f"{row.readings:,}", _age(row.last, now))
    return shown


def _age(time: datetime | None, now: datetime) -> str:
    if time is None:
        return "never"
    seconds = (now - time).total_seconds()
    if abs(seconds) < 120:
        return f"{seconds:.1f} s ago"
    return f"{seconds / 60:,.0f} min ago" if abs(seconds) < 7200 else f"{seconds / 3600:,.0f} h ago"
