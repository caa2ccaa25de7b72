"""Render the parts of the page that are other for a model that predicts actions and ranks no items."""

from html import escape
from typing import Any

from pipeline.results.identity import Result
from pipeline.track.action_scoreboard import HEADINGS, NO_RECALL, action_rows
from pipeline.track.figures import bars, curves
from pipeline.track.scoreboard import Cell

SERIES = {"model": "auc", "means of item and user": "means_auc"}


def action_protocol(result: Result, params: dict[str, Any]) -> str:
    """Return the line that says on what data and how the result was evaluated."""
    counts, metrics = result.dataset, result.metrics
    of_all = f" of {metrics['users_in_all']:,.0f}, a sample" if "users_in_all" in metrics else ""
    return escape(
        f"{counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions · "
        f"{metrics['exposures']:,.0f} test exposures of {metrics['users']:,.0f} users{of_all}, divided by time · "
        f"histories of at most {params['split.max_history']} exposures"
    )


def action_facts(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Return the few numbers to remember, with their labels."""
    told = [(f"{metrics[name]:.4f}", HEADINGS[name]) for name in ("auc", "gauc") if name in metrics]
    return told + [(f"{metrics['means_auc']:.4f}", "AUC of item and user means")] * ("means_auc" in metrics)


def action_table(metrics: dict[str, float], strategy: str) -> str:
    """Return the table of the model and the regression, and notes below it."""
    heads = "<tr><th></th>" + "".join(f"<th>{heading}</th>" for heading in HEADINGS.values()) + "</tr>"
    lines = []
    for number, row in enumerate(action_rows(metrics, strategy)):
        kind = ' class="model"' if number % 2 == 0 else ""
        lines.append(f"<tr{kind}><td>{escape(row.system)}</td>" + "".join(map(_cell, row.cells)) + "</tr>")
    note = (
        f'<p class="soft">{NO_RECALL}. Small: 95% bootstrap interval over users. Log loss in nats; calibration is '
        f"predicted over observed positives. Validation chose step {metrics['best_step']:,.0f}.</p>"
    )
    return f'<div class="scroll"><table>{heads}{"".join(lines)}</table></div>{note}'


def action_drawings(result: Result) -> dict[str, str]:
    """Return the drawings by their titles."""
    losses = {"train_loss": "training", "valid_loss": "validation"}
    drawn = {"Loss": curves(result.history, losses, "cross-entropy, summed over columns")}
    if all("auc" in row for row in result.history):
        drawn["Validation"] = curves(result.history, {"auc": "AUC, mean over labels"}, "on validation exposures")
    tables = {
        "By earlier exposures of the user": (result.by_history, "exposures before"),
        "By exposures of the item": (result.by_popularity, "exposures in training"),
    }
    for title, (table, xlabel) in tables.items():
        rows = [row for row in table if all(row[column] != "nan" for column in SERIES.values())]
        if rows:
            series = {name: [float(row[column]) for row in rows] for name, column in SERIES.items()}
            drawn[title] = bars([row["bin"].strip() for row in rows], series, xlabel, "AUC, mean over labels")
    return drawn


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td>-</td>"
    interval = f"<small>{cell.interval[0]:.4f} to {cell.interval[1]:.4f}</small>" if cell.interval else ""
    return f"<td>{cell.value:.4f}{interval}</td>"
