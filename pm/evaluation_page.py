"""An evaluation for people: a table for the console, and a page with its curves that opens without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from pm import charts, page

TOLD_AT = "72h"
"""The horizon that the sentences are about."""


def table(evaluation: Mapping[str, Any]) -> Table:
    """One line per forecaster and horizon."""
    shown = Table(title=f"{evaluation['model']} on {evaluation['recording']}", title_justify="left")
    for heading in ("forecaster", "failure within"):
        shown.add_column(heading)
    for heading in ("PR-AUC", "base rate", "Brier", "calibration error", "of a perfect one", "ROC-AUC"):
        shown.add_column(heading, justify="right")
    for name, scores in evaluation["scores"].items():
        for label, score in scores["horizons"].items():
            shown.add_row(
                name,
                label.replace("h", " h"),
                _with_interval(score["pr_auc"], 3),
                page.percent(score["base_rate"], 1),
                page.number(score["brier"]["value"], 4),
                page.number(score["calibration_error"]["value"], 4),
                _with_interval(score["calibration_floor"], 4),
                page.number(score["roc_auc"]["value"], 3),
            )
        shown.add_section()
    return shown


def alert_table(evaluation: Mapping[str, Any]) -> Table:
    """One line per forecaster and alert budget."""
    shown = Table(title=f"Alerts, thresholds from {evaluation['thresholds_from']}", title_justify="left")
    for heading in ("forecaster", "budget"):
        shown.add_column(heading)
    for heading in ("recall", "24 h ahead", "48 h ahead", "lead, hours", "precision", "false a month"):
        shown.add_column(heading, justify="right")
    for name, scores in evaluation["scores"].items():
        for budget, alerts in (scores["alerts"] or {}).items():
            shown.add_row(
                name,
                budget,
                _with_interval(alerts["recall"], 3),
                _with_interval(alerts["recall_at_lead"]["24h"], 3),
                _with_interval(alerts["recall_at_lead"]["48h"], 3),
                lead(alerts["lead_hours"]),
                page.number(alerts["precision"]["value"], 3),
                _with_interval(alerts["false_alerts_per_asset_month"], 3),
            )
        shown.add_section()
    return shown


def lead(hours: Mapping[str, float | None]) -> str:
    """Median lead with the tenth and ninetieth percentiles."""
    return f"{page.number(hours['median'], 0)} ({page.number(hours['p10'], 0)} to {page.number(hours['p90'], 0)})"


def sentences(evaluation: Mapping[str, Any]) -> list[str]:
    """What the table cannot say: the difference from each baseline, and what to be careful with."""
    lines = [_gap_told(gaps[TOLD_AT], name, "") for name, gaps in evaluation["pr_auc_above"].items()]
    if evaluation["later"] is not None:
        since = f"From {evaluation['later']['start'][:10]} on, later than all that training saw, "
        gaps_later = evaluation["later"]["pr_auc_above"]
        lines += [_gap_told(gaps[TOLD_AT], name, since) for name, gaps in gaps_later.items()]
    lines = [line for line in lines if line]
    forecaster = next(iter(evaluation["scores"].values()))  # the baselines come after it
    error = forecaster["horizons"][TOLD_AT]
    if error["calibration_floor"]["high"] is not None:
        low, high = error["calibration_floor"]["low"], error["calibration_floor"]["high"]
        within = "can be told from" if error["calibration_error"]["value"] > high else "cannot be told from"
        lines.append(
            f"The calibration error at 72 h {within} that of a perfect forecaster on as many forecasts "
            f"({low:.4f} to {high:.4f})."
        )
    if evaluation["baselines_left_out"]:
        lines.append(f"No baselines: {evaluation['baselines_left_out']}.")
    if evaluation["seen_in_training"]:
        seen = len(evaluation["seen_in_training"])
        lines.append(f"{seen} of the judged assets were seen in training: these scores flatter the model.")
    return lines


def _gap_told(gap: Mapping[str, float | None], name: str, since: str) -> str:
    value, low, high = gap["value"], gap["low"], gap["high"]
    if value is None:
        return ""
    told = f"{since}PR-AUC at 72 h is {abs(value):.3f} {'above' if value >= 0 else 'below'} {name}"
    if low is None or high is None:
        return f"{told}; the assets are too few to be sure of the sign."
    told += f" (95 %: {low:+.3f} to {high:+.3f})"
    return told + ("." if low > 0 or high < 0 else "; the assets are too few to be sure of the sign.")


def evaluation_page(evaluation: Mapping[str, Any]) -> str:
    """The page as text."""
    figures = {}
    for label in next(iter(evaluation["curves"].values())):
        curves = {name: by_label[label] for name, by_label in evaluation["curves"].items()}
        reliable = {
            name: list(zip(*(curve["reliability"][key] for key in ("predicted", "observed", "count")), strict=True))
            for name, curve in curves.items()
            if curve["reliability"]["count"]
        }
        if reliable:
            figures[f"reliability {label}"] = charts.reliability(reliable)
        ranked = {name: (curve["recall"], curve["precision"]) for name, curve in curves.items() if curve["recall"]}
        if ranked:
            figures[f"precision_recall {label}"] = charts.precision_recall(ranked)
    return page.render(
        "evaluation.html", figures=figures, evaluation=evaluation, sentences=sentences(evaluation), lead=lead
    )


def write_html(evaluation: Mapping[str, Any], path: Path) -> None:
    """Write the page, whole or not at all."""
    page.write(evaluation_page(evaluation), path)


def _with_interval(score: Mapping[str, Any], digits: int) -> str:
    told = page.interval(score, digits)
    return f"{page.number(score['value'], digits)} ({told})" if told else page.number(score["value"], digits)
