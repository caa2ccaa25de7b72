"""Describe a run in Markdown: a sentence, a table of the model beside counting, and drawings of curve and frontier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.metric_names import MAIN_METRICS, METRICS
from pipeline.printing import shown
from pipeline.results.frontier_points import Point
from pipeline.results.identity import Result
from pipeline.results.parameters import value_text
from pipeline.results.run_names import RunName
from pipeline.track.action_scoreboard import HEADINGS, NO_RECALL, action_rows, predicts_actions
from pipeline.track.figures import curves
from pipeline.track.page import frontier_drawing
from pipeline.track.scoreboard import Cell, scoreboard_rows

CURVE = "curve.svg"  # attached to the run, below `report`
FRONTIER = "frontier.svg"  # likewise, where several results are known
WORDS = {"recall_at_10": "recall@10", "auc": "AUC, mean over labels", "valid_loss": "loss"}
CAPTIONS = {CURVE: "validation over training windows", FRONTIER: "recall@10 against training seconds"}


def pictures(result: Result, known: Sequence[Point], folder: Path) -> list[Path]:
    """Draw recall@10 on validation over training windows, and quality against cost, as SVG files of `folder`.

    Args:
        known: results of the project that were tested alike, this one included; the second file needs two of them.
    """
    score = next((name for name in ("recall_at_10", "auc") if name in result.history[0]), "valid_loss")
    element = curves(result.history, {score: "validation"}, WORDS[score])
    if "xmlns=" not in element.partition(">")[0]:
        element = element.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    drawn = {CURVE: element}
    if len(known) > 1:
        drawn[FRONTIER] = frontier_drawing(result.metrics, known, transparent=False)
    for name, text in drawn.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in drawn]


def describe_run(
    result: Result, params: Mapping[str, Any], name: RunName, run_id: str, drawn: Sequence[str] = (CURVE,)
) -> str:
    """Return the description of the run `run_id`, whose pictures the page of MLflow's server fetches from the run."""
    actions = predicts_actions(result.metrics)
    names = [*HEADINGS.values()] if actions else [name.replace("_at_", "@") for name in METRICS]
    how = f"evaluate.filter\\_seen is {value_text(params['evaluate.filter_seen'])}"
    if actions:
        how = f"{result.metrics['exposures']:,.0f} test exposures; {NO_RECALL}"
    lines = [
        f"Strategy **{_cell(name.strategy)}**, network **{_cell(name.backbone)}**, data **{_cell(name.data)}**, seed "
        f"{name.seed}: {result.dataset['users']:,} users, {result.dataset['items']:,} items, "
        f"{result.dataset['interactions']:,} interactions; {how}.",
        "",
        f"| test | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for row in (action_rows if actions else scoreboard_rows)(dict(result.metrics), name.strategy):
        cells = [_number(cell) for cell in row.cells[: len(names)]]
        lines.append(f"| {_cell(row.system)} | {' | '.join(cells)} |")
    main = "the AUCs" if actions else ", ".join(metric.replace("_at_", "@") for metric in MAIN_METRICS)
    lines += [
        "",
        f"In brackets: 95% interval of {main}.",
    ]
    for file in drawn:
        lines += ["", f"![{CAPTIONS[file]}](get-artifact?path=report%2F{file}&run_uuid={run_id})"]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return text from data as it may stand in a table: nothing in it is Markdown or HTML."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>()#+!|&~" else letter for letter in shown(text))


def _number(cell: Cell | None) -> str:
    if cell is None:
        return ""
    low_high = f" ({cell.interval[0]:.4f} to {cell.interval[1]:.4f})" if cell.interval else ""
    return f"{cell.value:.4f}{low_high}"
