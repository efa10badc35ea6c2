"""How pages write probabilities, durations and times: filters of the templates, pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo

from markupsafe import Markup

THIN = "\N{NARROW NO-BREAK SPACE}"
DASH = "\N{EN DASH}"


def percent(share: float | None) -> str:
    """`38 %`; small ones with a digit more; never `0 %` or `100 %`, which no forecast means; a dash for None."""
    if share is None:
        return DASH
    value = 100.0 * share
    if value < 0.1:
        return f"<0.1{THIN}%"
    if value > 99.0:
        return f">99{THIN}%"
    return f"{value:.1f}{THIN}%" if value < 9.95 else f"{value:.0f}{THIN}%"


def duration(hours: float | None) -> str:
    """Hours as a person says them: `20 min`, `7 h`, `4 d 3 h`, `12 d`; a dash for None."""
    if hours is None:
        return DASH
    if hours < 1:
        return f"{max(0, round(hours * 60))}{THIN}min"
    if hours < 48:
        return f"{hours:.0f}{THIN}h"
    days, rest = divmod(round(hours), 24)
    return f"{days}{THIN}d{THIN}{rest}{THIN}h" if rest and days < 10 else f"{days}{THIN}d"


def ago(hours: float | None) -> str:
    """`30 h ago`; `now` under a minute; a dash for None."""
    if hours is None:
        return DASH
    return "now" if hours < 1 / 60 else f"{duration(hours)} ago"


def since(time: datetime | None, now: datetime | None) -> float | None:
    """Hours from `time` to `now`, not under 0; None when either is unknown."""
    if time is None or now is None:
        return None
    return max(0.0, (now - time) / timedelta(hours=1))


def zone_name(time: datetime) -> str:
    """`CET`; zones without letters of their own are written by their offset, `UTC+03`."""
    name = time.strftime("%Z")
    return f"UTC{name}" if name[:1] in "+-" else name


def clock(time: datetime | None, zone: tzinfo) -> Markup | str:
    """A `<time>` of the plant's zone with the zone shown: `24 Nov 2026 10:00 CET`; a dash for None."""
    if time is None:
        return DASH
    local = time.astimezone(zone)
    text = f"{local.day}{local:\N{NO-BREAK SPACE}%b\N{NO-BREAK SPACE}%Y %H:%M}{THIN}{zone_name(local)}"
    return Markup('<time datetime="{}">{}</time>').format(time.astimezone(UTC).isoformat(), text)


def chart_zone(zone: tzinfo, until: datetime) -> tuple[tzinfo, str]:
    """The zone of a chart's axis and its name: the offset that holds at the chart's end, held fixed.

    A chart over a clock change would else run an hour back in autumn and leave a hole in spring.
    """
    local = until.astimezone(zone)
    offset = local.utcoffset() or timedelta(0)
    return timezone(offset), zone_name(local)


def signed(value: float) -> str:
    """A contribution to the log-hazard with its sign: `+1.32`, `−0.40`."""
    return f"{'+' if value >= 0 else chr(0x2212)}{abs(value):.2f}"


def payload_text(payload: bytes, limit: int) -> str:
    """A stranger's payload as one line that can do no harm: at most `limit` characters, `…` where there was more.

    What is not UTF-8, and what does not print (controls, marks that turn the direction of writing), is escaped.
    """
    text = payload[: 4 * limit + 4].decode("utf-8", "backslashreplace")
    safe = "".join(letter if letter.isprintable() else _escaped(letter) for letter in text[: limit + 1])
    return safe if len(safe) <= limit and len(text) <= limit else f"{safe[:limit]}…"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def size(count: int) -> str:
    """Bytes as a person says them: `512 B`, `2 KiB`, `1 MiB`."""
    for unit, length in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= length:
            return f"{count / length:.0f}{THIN}{unit}"
    return f"{count}{THIN}B"
