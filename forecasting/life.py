"""What an asset's readings have been so far: level, scatter and trend over spans up to its whole known life.

A forecast at serving time is made from the last `life` steps alone, and must have the same bits as one made from a
whole record. Signals are therefore rounded to a fixed unit and summed as integers, whose sums are exact wherever a
record begins; everything else is arithmetic on those sums, row by row.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SPANS = (6, 24, 72, 168)
"""Trailing spans in steps, beside the whole life; those as long as it or longer are left out."""
UNITS = 4096.0
"""Signals are rounded to one part in so many of their spread."""
EARLY = 24
"""Readings from the asset's first so many known steps make its own baseline."""
BLOCK_ROWS = 8_192
STATISTICS = ("mean", "scatter", "slope")
SHARES = (24, 0)
"""Spans over which the share of steps with a reading is told, 0 for the life."""


@dataclass(frozen=True)
class Layout:
    """Columns of a summary: blocks of P columns, one for each point: the statistics of every span, the early level,
    two departures from it, shares of presence, the pace over the life; then the age."""

    points: int
    life: int
    age: int
    """Columns of the asset's age."""

    @property
    def spans(self) -> tuple[int, ...]:
        return (*(span for span in SPANS if span < self.life), self.life)

    @property
    def blocks(self) -> int:
        """Blocks of P columns each."""
        return len(STATISTICS) * len(self.spans) + 3 + len(SHARES) + 1

    @property
    def width(self) -> int:
        return self.blocks * self.points + self.age

    def of_point(self, point: int) -> tuple[int, ...]:
        return tuple(range(point, self.blocks * self.points, self.points))

    @property
    def of_shares(self) -> slice:
        """Columns of the shares of steps with a reading."""
        first = self.blocks - 1 - len(SHARES)
        return slice(first * self.points, (first + len(SHARES)) * self.points)

    @property
    def of_age(self) -> tuple[int, ...]:
        return tuple(range(self.blocks * self.points, self.width))


def life_so_far(
    layout: Layout, normal: Floats, present: npt.NDArray[np.bool_], offsets: Ints, rows: Ints
) -> tuple[npt.NDArray[np.float32], Ints]:
    """[R, blocks * P] summaries at these rows, NaN where there is nothing to go by; [R] steps of known life before.

    normal: [N, P] normalised values, anything where `present` [N, P] is false. offsets: [A + 1].
    """
    found = np.empty((len(rows), layout.blocks, layout.points), dtype=np.float32)
    age = np.empty(len(rows), dtype=np.int64)
    asset = np.searchsorted(offsets, rows, side="right") - 1
    order = np.argsort(asset, kind="stable")
    # Assets a few at a time, so that their sums stay in the processor's cache.
    block = offsets[:-1] // BLOCK_ROWS
    for first, after in itertools.pairwise([*np.flatnonzero(np.diff(block, prepend=-1)), len(block)]):
        chosen = order[np.searchsorted(asset[order], first) : np.searchsorted(asset[order], after)]
        if len(chosen):
            part = slice(int(offsets[first]), int(offsets[after]))
            begin = offsets[asset[chosen]] - part.start
            summary = _of_some(layout, normal[part], present[part], begin, rows[chosen] - part.start)
            found[chosen], age[chosen] = summary
    return found.reshape(len(rows), layout.blocks * layout.points), age


def _of_some(
    layout: Layout, normal: Floats, present: npt.NDArray[np.bool_], begin: Ints, rows: Ints
) -> tuple[npt.NDArray[np.float32], Ints]:
    """[R, blocks, P] summaries and [R] steps of known life, of a few assets. begin: [R] first row of each row's asset.

    Rows are counted from the first of these assets' rows: what is summed as integers does not depend on it.
    """
    count = len(normal)
    observed = np.append(present.any(axis=1), True)
    following = np.minimum.accumulate(np.where(observed, np.arange(count + 1), count)[::-1])[::-1]
    birth = np.minimum(following[np.maximum(begin, rows - layout.life + 1)], rows)
    spans = np.array(layout.spans)
    firsts = np.maximum(birth[:, None], rows[:, None] - spans + 1)
    early = np.minimum(birth + EARLY, rows + 1)
    clock = np.arange(count, dtype=np.int64)[:, None]
    units = np.where(present, np.rint(normal * UNITS), 0.0).astype(np.int64)
    parts = (present, clock * present, clock * clock * present, units, units * units, clock * units)
    sums = [_running(part) for part in parts]
    found = np.empty((len(rows), layout.blocks, layout.points), dtype=np.float32)
    place = 3 * len(spans)
    *moments, pace = _moments([s[rows + 1][:, None] - s[firsts] for s in sums], rows[:, None, None])
    for number, values in enumerate(moments):
        found[:, number:place:3] = values
    found[:, -1] = pace[:, -1]  # of the last span, the life
    known = sums[0][early] - sums[0][birth]
    own = (sums[3][early] - sums[3][birth]) / np.where(known > 0, known, np.nan) / UNITS
    found[:, place] = own
    found[:, place + 1] = found[:, 0] - own
    found[:, place + 2] = found[:, 3 * min(1, len(spans) - 1)] - own
    for number, span in enumerate(SHARES):
        since = np.maximum(birth, rows - (span or layout.life) + 1)
        read = sums[0][rows + 1] - sums[0][since]
        found[:, place + 3 + number] = read / (rows - since + 1)[:, None]
    return found, rows - birth


def _running(part: npt.NDArray[np.generic]) -> Ints:
    """[N + 1, P] sums of everything before each place. They may wrap round; differences of them are exact."""
    sums = np.zeros((len(part) + 1, part.shape[1]), dtype=np.int64)
    np.cumsum(part, axis=0, dtype=np.int64, out=sums[1:])
    return sums


def _moments(sums: list[Ints], end: Ints) -> tuple[npt.NDArray[np.float64], ...]:
    """Mean, standard deviation and rise over the span from sums over it, in units of the signal; and its pace.

    The pace is the slope per `EARLY` steps, drawn towards none as if that many steps more had shown none: level over
    pace is what is left of a life.
    """
    n, t, tt, x, xx, tx = sums
    tx, tt, t = tx - end * x, tt - 2 * end * t + end * end * n, t - end * n
    some = np.where(n > 0, n, np.nan)
    pairs = np.where(n > 1, n, np.nan)
    mean = x / some
    scatter = np.sqrt(np.maximum(xx / pairs - (x / pairs) ** 2, 0.0))
    duration = tt / pairs - (t / pairs) ** 2
    together = tx / pairs - (t / pairs) * (x / pairs)
    pace = EARLY * together / (duration + EARLY**2 / 12.0)
    return mean / UNITS, scatter / UNITS, together / duration * np.sqrt(12.0 * duration) / UNITS, pace / UNITS
