"""The alert policy, step by step: each case is a row of probabilities and what must come of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm.config import AlertsSection
from pm.policy import NEVER, FleetState, advance
from pm.ports import PolicyState

HOUR = 3_600_000_000
NAN = float("nan")
RULES = AlertsSection(on_delay=2, off_delay=3, deadband=0.5, suppress_after_maintenance=timedelta(hours=4))


def run(
    probabilities: Sequence[float], *, rules: AlertsSection = RULES, renewed_at: dict[int, int] | None = None
) -> dict[str, list[int]]:
    """Steps (0, 1, 2 ... hours) at which an alert was raised, cleared and ended, threshold 0.4."""
    state = FleetState.fresh(1)
    found: dict[str, list[int]] = {"raised": [], "cleared": [], "ended": []}
    renewed = NEVER
    for hour, probability in enumerate(probabilities):
        renewed = (renewed_at or {}).get(hour, renewed)
        step = advance(
            state, at_us=hour * HOUR, probability=[probability], threshold=0.4, renewed_us=[renewed], rules=rules
        )
        state = step.state
        for name in found:
            if getattr(step, name)[0]:
                found[name].append(hour)
    return found


@pytest.mark.parametrize(
    ("probabilities", "raised", "cleared"),
    [
        pytest.param([0.5, 0.5], [1], [], id="on-delay: the second in a row raises"),
        pytest.param([0.5, 0.3, 0.5, 0.3], [], [], id="not in a row"),
        pytest.param([0.4, 0.4], [1], [], id="at the threshold counts"),
        pytest.param([0.5, NAN, 0.5], [2], [], id="an abstention holds the count"),
        pytest.param([NAN] * 10, [], [], id="abstentions raise nothing"),
        pytest.param([0.5, 0.5, 0.1, 0.1, 0.1], [1], [4], id="off-delay: the third in a row clears"),
        pytest.param([0.5, 0.5, 0.3, 0.3, 0.3, 0.3], [1], [], id="inside the deadband it stands"),
        pytest.param([0.5, 0.5, 0.2, 0.2, 0.2], [1], [], id="at the cleared level it stands"),
        pytest.param([0.5, 0.5, 0.1, NAN, 0.1, NAN, 0.1], [1], [6], id="an abstention holds the way back too"),
        pytest.param([0.5, 0.5, NAN, NAN, NAN, NAN, NAN], [1], [], id="silence does not clear"),
        pytest.param([0.5, 0.5, 0.1, 0.1, 0.3, 0.1, 0.1], [1], [], id="a return into the deadband starts anew"),
        pytest.param([0.5, 0.5, 0.5, 0.5, 0.5], [1], [], id="raised once"),
        pytest.param([0.5, 0.5, 0.1, 0.1, 0.1, 0.5, 0.5], [1, 6], [4], id="raised again after it cleared"),
        pytest.param([0.5, 0.5, 0.1, 0.1, 0.1, 0.5, 0.1], [1], [4], id="and again only after the on-delay"),
    ],
)
def test_raises_and_clears(probabilities: list[float], raised: list[int], cleared: list[int]) -> None:
    assert run(probabilities) == {"raised": raised, "cleared": cleared, "ended": []}


def test_maintenance_ends_an_alert_and_silences_the_asset() -> None:
    # Maintained at hour 2, known to the assessment of hour 3; silent before hour 2 + 4, on-delay 2 from there.
    found = run([0.9] * 9, renewed_at={3: 2 * HOUR})
    assert found == {"raised": [1, 7], "cleared": [], "ended": [3]}


def test_maintenance_forgets_what_was_counted() -> None:
    rules = RULES.model_copy(update={"suppress_after_maintenance": timedelta(0)})
    assert run([0.9, 0.9, 0.9], rules=rules, renewed_at={1: 0})["raised"] == [2]
    assert run([0.9, 0.1, 0.9, 0.1], rules=rules, renewed_at={1: 0})["raised"] == []


def test_without_a_standing_alert_maintenance_ends_nothing() -> None:
    assert run([0.1] * 4, renewed_at={1: 0})["ended"] == []


def test_the_same_maintenance_counts_once() -> None:
    # Told again at every assessment: the second alert is not ended by it.
    found = run([0.9] * 12, renewed_at=dict.fromkeys(range(3, 12), 2 * HOUR))
    assert found == {"raised": [1, 7], "cleared": [], "ended": [3]}


def test_an_older_maintenance_that_comes_late_changes_nothing() -> None:
    found = run([0.9] * 9, renewed_at={3: 2 * HOUR, 8: HOUR})
    assert found["ended"] == [3]
    assert found["raised"] == [1, 7]


def test_states_survive_the_records_form() -> None:
    states = {
        "a": PolicyState(1, 0, False, None),
        "b": PolicyState(2, 1, True, 5 * HOUR),
    }
    fleet = FleetState.of(["b", "new", "a"], states)
    assert fleet.by_asset(["b", "new", "a"]) == {**states, "new": PolicyState()}
    assert fleet.renewed_us.tolist() == [5 * HOUR, NEVER, NEVER]


probability = st.one_of(st.just(NAN), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0]))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(probability, min_size=3, max_size=3), min_size=1, max_size=40),
    on_delay=st.integers(1, 4),
    off_delay=st.integers(1, 4),
)
def test_a_grid_decides_as_each_asset_and_threshold_alone(
    rows: list[list[float]], on_delay: int, off_delay: int
) -> None:
    """The search for thresholds and the live plant share one rule: the grid's cell is the scalar run."""
    rules = RULES.model_copy(update={"on_delay": on_delay, "off_delay": off_delay})
    limits = np.array([0.15, 0.4, 0.9])
    grid = FleetState.fresh((3, 3))
    alone = {(a, k): FleetState.fresh(()) for a in range(3) for k in range(3)}
    for hour, row in enumerate(rows):
        renewed = np.array([2 * HOUR if hour > 2 else NEVER, NEVER, NEVER])
        step = advance(
            grid,
            at_us=hour * HOUR,
            probability=np.array(row)[:, None],
            threshold=limits,
            renewed_us=renewed[:, None],
            rules=rules,
        )
        grid = step.state
        assert not (step.raised & step.cleared).any()
        for (a, k), state in alone.items():
            single = advance(
                state,
                at_us=hour * HOUR,
                probability=row[a],
                threshold=limits[k],
                renewed_us=renewed[a],
                rules=rules,
            )
            alone[a, k] = single.state
            assert bool(single.raised) == step.raised[a, k]
            assert bool(single.cleared) == step.cleared[a, k]
            assert bool(single.ended) == step.ended[a, k]
            assert bool(single.state.standing) == grid.standing[a, k]
