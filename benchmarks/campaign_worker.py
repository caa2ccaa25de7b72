"""Run one row of a campaign in this process: train, evaluate, and leave result.json and ranks.npz in its folder.

    python -m benchmarks.campaign_worker FOLDER     # started by campaign.py, which wrote FOLDER/spec.json

The process needs neither DVC nor MLflow. It ends when its parent has ended. A run that was cut goes on from its
checkpoint.
"""

import inspect
import json
import os
import platform
import sys
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import pipeline.count.stage as count
import pipeline.evaluate.stage as evaluate
import pipeline.train.stage as train
from pipeline.artifacts import read_json
from pipeline.config import Params, build_params
from pipeline.errors import UserError
from pipeline.manifest import write_bytes
from pipeline.metric_names import MEASURED
from pipeline.presets.tuning_trial import best_row
from pipeline.results.compact_ranks import compact_bytes
from pipeline.results.parameters import flatten
from pipeline.results.ranks import DETAILS_FILE, METRICS_FILE, RANKS_FILE, Ranks

SPEC = "spec.json"
RESULT = "result.json"
COMPACT = "ranks.npz"


def end_with_parent() -> None:
    """End this process when the other end of its standard input is closed, which also happens when a parent dies."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run(folder: Path) -> None:
    """Run the row whose spec.json lies in `folder`; result.json is written last.

    Raises:
        UserError: as the stages train and evaluate.
    """
    if (folder / RESULT).exists():
        return
    spec = read_json(folder / SPEC)
    params = build_params(spec["params"], str(folder / SPEC))
    inputs = {name: Path(path) for name, path in spec["inputs"].items()}
    paths = {
        **inputs,
        "items": inputs["interactions"] / "items.parquet",
        "counting": folder / "counting",
        "generator": folder / "generator",
        "output": folder / "generator",
        "reports": folder / "reports",
        "scratch": folder / "scratch",
    }
    train.run(params, **_wanted(train.run, paths))
    if spec.get("trial"):  # the test is not read
        history = _history(folder / "reports")
        best = best_row(history, params.train.select)
        result = {"quality": best, "history": history, "hardware": hardware(params.train.device)}
        write_bytes(folder / RESULT, json.dumps(result).encode())
        return
    count.run(params, splits=inputs["splits"], output=folder / "counting")
    evaluate.run(params, **_wanted(evaluate.run, paths))
    ranks = Ranks.read(folder / "reports" / RANKS_FILE)
    write_bytes(folder / COMPACT, compact_bytes(ranks, flatten(params)))
    write_bytes(folder / RESULT, json.dumps(_result(folder / "reports", ranks, params)).encode())


def _wanted(function: Any, paths: dict[str, Path]) -> dict[str, Any]:
    """Return those of `paths` that are arguments of the function."""
    return {name: path for name, path in paths.items() if name in inspect.signature(function).parameters}


def _result(reports: Path, ranks: Ranks, params: Params) -> dict[str, Any]:
    """Return what was computed (`quality`), what was measured (`cost`), and the curve of training."""
    figures = read_json(reports / METRICS_FILE) | read_json(reports / DETAILS_FILE)
    figures = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    return {
        "quality": {name: value for name, value in figures.items() if name not in MEASURED},
        "cost": {name: value for name, value in figures.items() if name in MEASURED},
        "history": _history(reports),
        "model": ranks.origin.model,
        "hardware": hardware(params.train.device),
    }


def _history(reports: Path) -> list[dict[str, float]]:
    """Return a row per validation."""
    history = pd.read_csv(reports / "history.csv").dropna(axis=1, how="all")
    return [{str(name): value for name, value in row.items()} for row in history.to_dict("records")]


def hardware(device: str) -> str:
    """Return the machine in words."""
    if device != "cpu" and torch.cuda.is_available():
        return f"1 {torch.cuda.get_device_name()}, torch {torch.__version__.split('+')[0]}"
    return f"{torch.get_num_threads()} threads of a CPU ({platform.machine()}), torch {torch.__version__.split('+')[0]}"


if __name__ == "__main__":
    end_with_parent()
    try:
        run(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
