"""What `report.html` shows: the headline, the figures, and why each missed failure was missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, timedelta, tzinfo
from typing import TYPE_CHECKING, Any

import numpy as np

from forecasting.metrics import HorizonScore, Reliability
from pm import charts, page
from pm.charts import Bar, Figure, Mark
from pm.config import duration_text
from pm.domain import HORIZON, REPORTED_HOURS, from_us
from pm.outcomes import horizon_label, microseconds, probabilities
from pm.scorecard import Scorecard, Verdict

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 80
"""Assets that the timeline shows at most."""
LEAD_EDGES = (0.0, 12.0, 24.0, 36.0, 48.0, 60.0, 72.0)
_HORIZON_US = HORIZON // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Miss:
    """A failure without a warning, and what the forecasts before it said."""

    asset: str
    time: str
    mode: str
    highest: float | None
    """Highest 72 h probability issued from 72 h to the minimum lead before it; None without any."""
    why: str


def replay_page(
    report: Mapping[str, Any],
    *,
    forecasts: pd.DataFrame,
    observed: Mapping[str, tuple[int, int]],
    scorecard: Scorecard,
    quality: Mapping[str, HorizonScore],
    minimum_lead: timedelta,
    threshold: float | None,
    zone: tzinfo = UTC,
) -> str:
    """The page as text. Arguments as in `pm.report.write_replay`; times are shown in `zone`."""
    rows = _rows(scorecard)
    times = microseconds(forecasts["time"])
    period = f"{_clock(int(times.min()), zone)} to {_clock(int(times.max()), zone)} {zone}" if times.size else ""
    return page.render(
        "report.html",
        figures=_figures(scorecard, quality, observed, rows[:MOST_ROWS], zone),
        report=report,
        headline=headline(report),
        explanation=_explanation(report, scorecard),
        period=period,
        assets=len(observed),
        not_shown=len(observed) - len(rows[:MOST_ROWS]),
        missed=misses(forecasts, scorecard, minimum_lead=minimum_lead, threshold=threshold, zone=zone),
        quality=[quality_row(label, score) for label, score in quality.items()],
        minimum_lead=duration_text(minimum_lead),
    )


def headline(report: Mapping[str, Any]) -> str:
    """The replay in one sentence."""
    failures, rate = report["failures"], report["false_alerts_per_asset_month"]["value"]
    price = f"{page.number(rate)} false alerts per asset-month (budget {page.number(report['alert_budget'])})"
    if failures["total"] == 0:
        return f"No asset failed; {price}"
    if failures["warned"] == 0:
        return f"Warned of none of {_counted(failures['total'], 'failure')}; {price}"
    told = f"Warned of {failures['warned']} of {_counted(failures['total'], 'failure')}"
    return f"{told}, typically {page.hours(report['lead_hours']['median'])} ahead; {price}"


def _explanation(report: Mapping[str, Any], scorecard: Scorecard) -> str:
    """The counts behind the headline, in sentences."""
    alerts = len(scorecard.alerts)
    right, wrong = scorecard.count(Verdict.TRUE), scorecard.count(Verdict.FALSE)
    text = f"{_counted(alerts, 'alert')} in {report['asset_months']:,.1f} asset-months: {right} right, {wrong} false"
    open_ = scorecard.count(Verdict.UNDECIDED)
    text += f", {open_} undecided because the record ends too soon after." if open_ else "."
    rate, budget = report["false_alerts_per_asset_month"]["value"], report["alert_budget"]
    if rate is not None:
        text += " False alerts stayed within the budget." if rate <= budget else " False alerts exceeded the budget."
    if scorecard.unobserved:
        text += f" {_counted(scorecard.unobserved, 'failure')} left out, because the asset was not observed around it."
    return text


def quality_row(label: str, score: HorizonScore) -> dict[str, Any]:
    """A row of the table of forecast quality."""
    return {
        "label": label.replace("h", " h"),
        "known": score.known,
        "base_rate": score.base_rate,
        "pr_auc": score.pr_auc.to_json(),
        "roc_auc": score.roc_auc.to_json(),
        "brier": score.brier.to_json(),
        "calibration_error": score.reliability.error.to_json(),
    }


def misses(
    forecasts: pd.DataFrame, scorecard: Scorecard, *, minimum_lead: timedelta, threshold: float | None, zone: tzinfo
) -> list[Miss]:
    """Every missed failure with the highest probability before it and what stood in the way of a warning."""
    if not scorecard.missed:
        return []
    rows = forecasts.groupby("asset", observed=True).indices
    times, chance = microseconds(forecasts["time"]), probabilities(forecasts)[REPORTED_HOURS[-1]]
    abstained = forecasts["abstained"].to_numpy(object)
    found = []
    for failure in scorecard.missed:
        until = failure.time_us - minimum_lead // timedelta(microseconds=1)
        own = np.asarray(rows.get(failure.asset, ()), np.int64)
        before = own[(times[own] >= failure.time_us - _HORIZON_US) & (times[own] <= until)]
        issued = chance[before][~np.isnan(chance[before])]
        silent = before[np.isnan(chance[before])]
        highest = float(issued.max()) if issued.size else None
        found.append(
            Miss(
                asset=failure.asset,
                time=_clock(failure.time_us, zone),
                mode=failure.failure_mode,
                highest=highest,
                why=_why(highest, threshold, [str(reason) for reason in abstained[silent]], before.size),
            )
        )
    return found


def _why(highest: float | None, threshold: float | None, abstained: list[str], forecasts: int) -> str:
    if forecasts == 0:
        return "no forecast was due in the 72 h before"
    reasons = " and ".join(sorted(set(abstained)))
    if highest is None:
        return f"no forecast: {reasons}"
    partly = f"; {len(abstained)} of {forecasts} forecasts abstained ({reasons})" if abstained else ""
    if threshold is None:
        return f"no alert stood{partly}"
    if highest < threshold:
        return f"stayed under the alert threshold of {page.percent(threshold, 1)}{partly}"
    return (
        f"over the alert threshold of {page.percent(threshold, 1)} too briefly, too late, or while suppressed{partly}"
    )


def _rows(scorecard: Scorecard) -> list[str]:
    """Assets worth a line of the timeline: those with an alert or a failure, by name."""
    return sorted({alert.asset for alert in scorecard.alerts} | {failure.asset for failure in scorecard.failures})


def _figures(
    scorecard: Scorecard,
    quality: Mapping[str, HorizonScore],
    observed: Mapping[str, tuple[int, int]],
    rows: list[str],
    zone: tzinfo,
) -> dict[str, Figure]:
    figures = {}
    if rows:
        bars, marks = _bars(scorecard, observed, rows, zone), _marks(scorecard, rows, zone)
        figures["timeline"] = charts.timeline([charts.words(row) for row in rows], bars, marks, zone=zone)
        whole = (min(start for start, _ in observed.values()), max(end for _, end in observed.values()))
        figures["timeline"]["layout"]["xaxis"]["range"] = charts.plain([from_us(us) for us in whole], zone)
    leads = [lead for lead in scorecard.lead_hours if lead is not None]
    if leads:
        figures["leads"] = charts.histogram(leads, LEAD_EDGES, x_title="hours of warning", y_title="failures")
    curves = {horizon_label(h): quality[horizon_label(h)].reliability for h in REPORTED_HOURS}
    drawn = {f"within {label.replace('h', ' h')}": curve_points(curve) for label, curve in curves.items()}
    drawn = {name: curve for name, curve in drawn.items() if curve}
    if drawn:
        figures["reliability"] = charts.reliability(drawn)
    return figures


def curve_points(curve: Reliability) -> list[tuple[float, float, float]]:
    """A reliability curve as `pm.charts.reliability` draws it."""
    return [
        (float(p), float(o), float(n)) for p, o, n in zip(curve.predicted, curve.observed, curve.count, strict=True)
    ]


def _bars(scorecard: Scorecard, observed: Mapping[str, tuple[int, int]], rows: list[str], zone: tzinfo) -> list[Bar]:
    bars = []
    for alert, verdict in zip(scorecard.alerts, scorecard.verdicts, strict=True):
        if alert.asset not in rows:
            continue
        end = observed[alert.asset][1] if alert.ended_us is None else alert.ended_us
        end_text = "still standing at the end" if alert.ended_us is None else f"ended {_clock(end, zone)}"
        text = (
            f"{alert.asset}: {verdict} alert ({alert.failure_mode}), raised {_clock(alert.raised_us, zone)}, {end_text}"
        )
        row, words = charts.words(alert.asset), charts.words(text)
        bars.append(Bar(row, from_us(alert.raised_us), from_us(end), words, f"{verdict} alert"))
    return bars


def _marks(scorecard: Scorecard, rows: list[str], zone: tzinfo) -> list[Mark]:
    marks = []
    for failure, lead in zip(scorecard.failures, scorecard.lead_hours, strict=True):
        if failure.asset in rows:
            kind = "missed" if lead is None else "warned"
            told = "no warning" if lead is None else f"warned {page.hours(lead)} ahead"
            text = f"{failure.asset} failed {_clock(failure.time_us, zone)} ({failure.failure_mode}): {told}"
            marks.append(Mark(charts.words(failure.asset), from_us(failure.time_us), charts.words(text), kind))
    return marks


def _clock(us: int, zone: tzinfo) -> str:
    return from_us(us).astimezone(zone).strftime("%Y-%m-%d %H:%M")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
