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
from pipeline.track.figures import curves
from pipeline.track.page import frontier_drawing
from pipeline.track.scoreboard import Cell, scoreboard_rows

CURVE = "curve.svg"  # attached to the run, below `report`
FRONTIER = "frontier.svg"  # likewise, where several results are known
CAPTIONS = {CURVE: "recall@10 on validation", FRONTIER: "recall@10 against training seconds"}


def pictures(result: Result, known: Sequence[Point], folder: Path) -> list[Path]:
    """Draw recall@10 on validation over training windows, and quality against cost, as SVG files of `folder`.

    Args:
        known: results of the project that were tested alike, this one included; the second file needs two of them.
    """
    element = curves(result.history, {"recall_at_10": "validation"}, "recall@10")
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
    names = [name.replace("_at_", "@") for name in METRICS]
    lines = [
        f"Strategy **{_cell(name.strategy)}**, network **{_cell(name.backbone)}**, data **{_cell(name.data)}**, seed "
        f"{name.seed}: {result.dataset['users']:,} users, {result.dataset['items']:,} items, "
        f"{result.dataset['interactions']:,} interactions; "
        f"evaluate.filter\\_seen is {value_text(params['evaluate.filter_seen'])}.",
        "",
        f"| test | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for row in scoreboard_rows(dict(result.metrics), name.strategy):
        cells = [_number(cell) for cell in row.cells[: len(METRICS)]]
        lines.append(f"| {_cell(row.system)} | {' | '.join(cells)} |")
    main = ", ".join(metric.replace("_at_", "@") for metric in MAIN_METRICS)
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
