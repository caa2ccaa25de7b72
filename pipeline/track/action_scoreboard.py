"""Make one table of the measures of predicted actions, to print and for the page: the model beside the means."""

from collections.abc import Mapping

from pipeline.metric_names import ACTION_METRICS
from pipeline.printing import shown
from pipeline.track.scoreboard import Cell, Row

HEADINGS = {"auc": "AUC", "gauc": "GAUC", "wgauc": "wGAUC", "log_loss": "log loss", "calibration": "calibration"}


def predicts_actions(metrics: Mapping[str, float]) -> bool:
    """Return whether a result is of a model that predicts actions, and ranks no items."""
    return "recall_at_10" not in metrics


def action_rows(metrics: Mapping[str, float], strategy: str) -> list[Row]:
    """Return two rows for the mean over labels, and two for each label: the model, and the regression on means."""
    labels = [name.removeprefix("auc") for name in metrics if name.startswith("auc") and f"means_{name}" in metrics]
    rows = []
    for label in labels:
        words = label.removeprefix("_") or "mean over labels"
        for prefix, system in (("", strategy), ("means_", "means of item and user")):
            cells = [_cell(metrics, f"{prefix}{name}{label}") for name in ACTION_METRICS]
            rows.append(Row(f"{shown(words)}, {system}", cells))
    return rows


def action_scoreboard_text(metrics: Mapping[str, float], strategy: str) -> str:
    """Return the table in columns of fixed width, and a line that says what is absent."""
    table = action_rows(metrics, strategy)
    first = max((len(row.system) for row in table), default=0) + 1
    lines = [f"{'':{first}}" + "".join(f"{heading:>13}" for heading in HEADINGS.values())]
    lines += [
        f"{row.system:{first}}" + "".join(f"{cell.value:13.4f}" if cell else f"{'-':>13}" for cell in row.cells)
        for row in table
    ]
    intervals = [
        f"{heading} {cell.interval[0]:.4f} to {cell.interval[1]:.4f}"
        for heading, cell in zip(HEADINGS.values(), table[0].cells if table else [], strict=False)
        if cell and cell.interval
    ]
    told = [f"95% intervals, {table[0].system}: {', '.join(intervals)}"] if intervals else []
    return "\n".join([*lines, *told, NO_RECALL])


NO_RECALL = "train.task is ranking: the model predicts actions and ranks no items, so that there is no recall"


def _cell(metrics: Mapping[str, float], key: str) -> Cell | None:
    if key not in metrics:
        return None
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    return Cell(metrics[key], None if low is None or high is None else (low, high))
