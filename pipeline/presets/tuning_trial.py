"""Run one trial of `tune` in this process: Semantic IDs, then the stage train, and no test item.

    python -m pipeline.presets.tuning_trial FOLDER      # `tune` starts it, and wrote FOLDER/spec.json

The process ends with the one that started it. A trial that was cut goes on from its checkpoint.
"""

import csv
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.artifacts import read_json
from pipeline.config import Params, build_params
from pipeline.errors import UserError
from pipeline.faults import explain_fault
from pipeline.locks import alone
from pipeline.manifest import write_bytes
from pipeline.printing import say

SPEC = "spec.json"
RESULT = "result.json"
LOG = "log.txt"
CODE_OF_A_FAULT = 1


def run_trial(folder: Path) -> None:
    """Run the trial whose spec.json lies in `folder`, and write result.json last.

    Raises:
        UserError: as the stages quantize and train.
    """
    spec = read_json(folder / SPEC)
    params = build_params(spec["params"], str(folder / SPEC))
    inputs = {name: Path(path) for name, path in spec["inputs"].items()}
    sids = Path(spec["sids"])
    if not params.backbone.over_items:
        _make_sids(params, inputs, sids)
    from pipeline.train.stage import run

    began = time.time()
    reports = folder / "reports"
    timings = run(
        params,
        interactions=inputs["interactions"],
        embeddings=inputs["embeddings"],
        splits=inputs["splits"],
        sids=sids,
        output=folder / "generator",
        reports=reports,
        scratch=folder / "scratch",
    )
    with (reports / "history.csv").open(newline="") as file:
        history = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
    best = best_row(history, params.train.select)
    result = {
        "value": best["valid_loss" if params.train.select == "loss" else params.train.select],
        "windows": best["windows"],
        "seconds": round(time.time() - began, 1),
        "train_seconds": timings["train_seconds"],
        "history": history,
    }
    write_bytes(folder / RESULT, json.dumps(result).encode())


def best_row(history: list[dict[str, float]], select: str) -> dict[str, float]:
    """Return the best validation: the largest metric, or the smallest loss; of equals the first, as training does."""
    return min(history, key=lambda row: row["valid_loss"] if select == "loss" else -row[select])


def _make_sids(params: Params, inputs: dict[str, Path], sids: Path) -> None:
    """Make the Semantic IDs once for all trials of these settings, while no other process makes them."""
    from pipeline.quantize.stage import run

    sids.parent.mkdir(parents=True, exist_ok=True)
    with alone(sids.with_suffix(".lock"), lambda holder: say(f"waiting for {holder} to make the Semantic IDs")):
        if not (sids / "manifest.json").exists():
            run(params, **inputs, output=sids)


def end_with_parent() -> None:
    """End this process when the other end of its standard input is closed, also because the parent was killed."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(CODE_OF_A_FAULT)

    threading.Thread(target=wait, daemon=True).start()


def _main(arguments: list[str]) -> Any:
    """Run the trial, and return the exit code or, of an error, its lines."""
    end_with_parent()
    try:
        run_trial(Path(arguments[0]))
    except Exception as error:
        known = error if isinstance(error, UserError) else explain_fault(error, "tune")
        if known is None:
            raise
        return f"error: {known.what}"
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
