"""Sort metrics into the sections by which MLflow groups its charts: test, baseline, cost, valid, train.

What says nothing is left out: a number that stands under another name too, and a cost of nothing.
"""

from collections.abc import Mapping

from pipeline.metric_names import (
    ACTION_METRICS,
    BASELINES,
    DENSE,
    DENSE_TRAINING,
    MAIN_METRICS,
    MEANS,
    MEASURED,
    METRICS,
)

NO_TIES = "noties_"
# A number -> the number that it repeats in runs where nothing makes the two differ.
DOUBLES = {
    "samples_per_second": "windows_per_second",
    "samples_trained": "windows_trained",
    "tokens_per_step_after_pruning": "tokens_per_step",
}
# MLflow's comparison begins with what was logged first
FIRST = tuple(dict.fromkeys((*MAIN_METRICS, *METRICS, *ACTION_METRICS)))


def final_metrics(metrics: Mapping[str, float], timings: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers of a result under names such as `test/recall_at_10` and `cost/train_seconds`.

    Args:
        metrics: as metrics.json has them.
        timings: figures of training.
    """
    values = {**metrics, **timings}
    costs = {*timings, *MEASURED}
    told: dict[str, float] = {}
    for name in sorted(values, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)):
        value = values[name]
        double = name in DOUBLES and value == values.get(DOUBLES[name])
        without_ties = name.startswith(NO_TIES) and not values.get("tie_share", 1)
        if double or without_ties or (name in costs and not value) or (name == "keep_rate" and value == 1):
            continue
        told[f"{_section(name, costs)}/{name}"] = value
    return dict(sorted(told.items(), key=lambda item: ("test", "baseline", "cost", "train").index(_head(item[0]))))


def curve_metrics(row: Mapping[str, float]) -> dict[str, float]:
    """Return a validation's row of history.csv under names such as `valid/recall_at_10` and `train/loss`."""
    names = [*(name for name in FIRST if name in row), *(name for name in row if name not in FIRST)]
    return {curve_name(name): row[name] for name in names if name != "step"}


def curve_name(name: str) -> str:
    """Return `train/loss` for train_loss, `valid/loss` for valid_loss, `train/windows`, else `valid/NAME`."""
    section, _, rest = name.partition("_")
    if section in ("train", "valid") and rest:
        return f"{section}/{rest}"
    return "train/windows" if name == "windows" else f"valid/{name}"


def _head(name: str) -> str:
    return name.partition("/")[0]


def _section(name: str, costs: set[str]) -> str:
    if name == "best_step":
        return "train"
    if name in costs:
        return "cost"
    if name in DENSE_TRAINING:
        return "train"
    beside = tuple(f"{system}_" for system in (*BASELINES, DENSE, MEANS))
    return "baseline" if name.removeprefix(NO_TIES).startswith(beside) else "test"
