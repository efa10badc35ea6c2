"""Figures are plain JSON in one style, tell times in the caller's zone, and never draw an unknown as a number."""

import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from pm import charts

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


def _strict(figure: charts.Figure) -> str:
    return json.dumps(figure, allow_nan=False)


def test_unknown_values_become_null_and_not_zero() -> None:
    assert charts.plain([1.5, float("nan"), None, float("inf"), np.float64("nan"), pd.NaT]) == [1.5, *[None] * 5]
    assert charts.line([1, 2], [0.5, float("nan")])["y"] == [0.5, None]
    assert charts.line([1, 2], [0.5, float("nan")])["connectgaps"] is False


def test_times_are_told_in_the_zone_however_they_come() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    told = ["2026-07-01 14:00:00"]
    assert charts.plain([NOON], berlin) == told
    assert charts.plain([pd.Timestamp(NOON)], berlin) == told
    assert charts.plain(np.array(["2026-07-01T12:00:00"], dtype="datetime64[us]"), berlin) == told
    assert charts.plain(np.array(["2026-07-01T12:00:00"], dtype="datetime64[ns]"), berlin) == told
    with pytest.raises(ValueError, match="zone"):
        charts.plain([datetime(2026, 7, 1)])


def test_a_figure_is_strict_json_with_transparent_ground() -> None:
    made = charts.figure(
        [charts.line([NOON], np.array([0.25]), name="a"), charts.bars(["x"], [2], name="b", horizontal=True)],
        title="T", x_title="time", y_title="p", y_percent=True, y_range=(0, 1),
    )  # fmt: skip
    _strict(made)
    assert made["layout"]["paper_bgcolor"] == made["layout"]["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert made["layout"]["yaxis"]["tickformat"] == ".0%"
    assert made["layout"]["showlegend"] is True
    assert (made["data"][1]["x"], made["data"][1]["y"]) == ([2], ["x"])
    assert charts.figure([charts.line([1], [1], name="alone")])["layout"]["showlegend"] is False


def test_reliability_has_the_diagonal_and_a_mark_per_bin() -> None:
    made = charts.reliability({"pm": [(0.01, 0.02, 500), (0.4, 0.35, 500)], "LightGBM": [(0.1, 0.2, 9)]})
    _strict(made)
    diagonal, pm, other = made["data"]
    assert diagonal["x"] == diagonal["y"]
    assert pm["x"] == [0.01, 0.4] and pm["y"] == [0.02, 0.35]
    assert pm["line"]["dash"] != other["line"]["dash"], "two curves differ without their colour"
    assert made["layout"]["xaxis"]["range"] == made["layout"]["yaxis"]["range"] == [0, pytest.approx(0.42)]
    assert charts.reliability({})["layout"]["yaxis"]["range"][1] > 0


def test_histogram_counts_by_hand() -> None:
    made = charts.histogram([0.5, 1.0, 5.0, 99.0, float("nan")], [0, 1, 6, 24], x_title="h")
    _strict(made)
    (trace,) = made["data"]
    assert trace["y"] == [1, 2, 1], "1.0 opens the second bin, 99 is kept in the last, NaN is no case"
    assert trace["x"] == [0.5, 3.5, 15.0]


def test_precision_recall_keeps_each_curve() -> None:
    made = charts.precision_recall({"pm": (np.array([0.0, 1.0]), np.array([1.0, 0.2]))})
    _strict(made)
    assert made["data"][0]["x"] == [0.0, 1.0] and made["data"][0]["y"] == [1.0, 0.2]


def test_timeline_lays_rows_from_the_top_and_kinds_apart() -> None:
    made = charts.timeline(
        ["m1", "m2"],
        [
            charts.Bar("m1", NOON, NOON + timedelta(hours=5), "alert", "true alert"),
            charts.Bar("m2", NOON, NOON + timedelta(hours=1), "alert", "false alert"),
        ],
        [charts.Mark("m1", NOON + timedelta(hours=5), "comp1", "warned")],
    )
    _strict(made)
    assert [trace["name"] for trace in made["data"]] == ["true alert", "false alert", "warned"]
    assert made["data"][0]["x"] == ["2026-07-01 12:00:00", "2026-07-01 17:00:00", None], "a None parts bars of one kind"
    assert made["layout"]["yaxis"]["categoryarray"] == ["m2", "m1"]
    _strict(charts.timeline([]))


def _contrast(colour: str, ground: str) -> float:
    """WCAG 2.2 contrast ratio."""

    def luminance(code: str) -> float:
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted([luminance(colour), luminance(ground)], reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colour", [*charts.PALETTE, charts.RED, charts.GREY])
@pytest.mark.parametrize("ground", ["#ffffff", "#171f27"])
def test_every_series_colour_is_seen_on_light_and_dark(colour: str, ground: str) -> None:
    assert _contrast(colour, ground) >= 3.0


def test_words_of_others_are_no_markup() -> None:
    assert charts.words('<a href="x">pump</a>') == '&lt;a href="x"&gt;pump&lt;/a&gt;'
