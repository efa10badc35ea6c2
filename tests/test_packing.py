"""Packed rows of the embedded store: whatever goes in comes out, and what is damaged is told."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from connectors.packing import SPARSE, pack, unpack, unpack_rows

_value = st.one_of(st.just(float("nan")), st.floats(allow_nan=False, allow_infinity=False, width=64))


@st.composite
def rows(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    width = draw(st.integers(0, 9))
    times = sorted(draw(st.sets(st.integers(-(2**53), 2**53), max_size=6)))
    values = [draw(st.lists(_value, min_size=width, max_size=width)) for _ in times]
    return np.array(times, dtype=np.int64), np.array(values, dtype=np.float64).reshape(len(times), width)


@settings(max_examples=80, deadline=None)
@given(packed=rows(), seed=st.integers(0, 9))
def test_what_is_packed_comes_back_in_every_way(
    packed: tuple[NDArray[np.int64], NDArray[np.float64]], seed: int
) -> None:
    times, values = packed
    width = values.shape[1]
    layouts, cells = pack(times, values)
    assert unpack_rows(layouts, cells, width).tobytes() == values.tobytes()
    back: dict[int, bytes] = {}
    for layout in set(layouts):
        chosen = [row for row, own in enumerate(layouts) if own == layout]
        Random(seed).shuffle(chosen)
        for time, row in zip(*unpack(layout, b"".join(cells[row] for row in chosen), width), strict=True):
            back[int(time)] = row.tobytes()
    assert back == {time: row.tobytes() for time, row in zip(times.tolist(), values, strict=True)}


def test_the_shorter_form_is_taken() -> None:
    values = np.full((4, 100), np.nan)
    values[1, 7] = 1.0
    values[2, :33] = 1.0
    values[3, :34] = 1.0
    layouts, cells = pack(np.arange(4), values)
    assert layouts == [SPARSE, SPARSE, SPARSE, 100]
    assert [len(one) for one in cells] == [24, 24, 33 * 24, 808]


def test_rows_from_before_a_point_came_read_as_without_it() -> None:
    layouts, cells = pack(np.array([5]), np.array([[1.0, 2.0]]))
    times, values = unpack(layouts[0], cells[0], 3)
    assert times.tolist() == [5]
    assert np.array_equal(values, [[1.0, 2.0, np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    ("layout", "joined"),
    [(2, b"\0" * 23), (4, b"\0" * 40), (SPARSE, b"\0" * 25), (SPARSE, np.array([1, 3, 0]).tobytes())],
    ids=["a part of a row", "more points than there are", "a part of a cell", "a place that is none"],
)
def test_what_are_no_rows_is_refused(layout: int, joined: bytes) -> None:
    with pytest.raises(ValueError, match=r"bytes|cells|size"):
        unpack(layout, joined, 3)
