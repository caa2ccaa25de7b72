"""Run all stages on one made log, each in a process of its own, and resume where an earlier run ended.

    python -m benchmarks.scale all /tmp/all --events 100M --items 1M

The folder gets the log (made/), the project (work/) and rows.jsonl with a row per stage. A stage that has a row is not
run again, so that a run that was stopped goes on with the stage that it was in; remove a row to measure its stage anew.
Training ends after one step, because its steps do not depend on the log: the row of `train` is that of its start, of a
validation and of the end. `dense` and `track` do not run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.scale.logs import FACTS, Sizes, make
from benchmarks.scale.measure import ROOT, measure
from pipeline.printing import say

STAGES = ("ingest", "embed", "split", "count", "quantize", "train", "evaluate")
UNITS = {"k": 1_000, "M": 1_000_000}
SUMS = ("cpu_seconds", "wall_seconds")
PEAKS = ("peak_rss_mib", "peak_anonymous_mib")


def number(text: str) -> int:
    """Return 100M as 100,000,000 and 20k as 20,000. Raises ValueError where the text is no such number."""
    unit = UNITS.get(text[-1:], 1)
    return int(text[:-1] if unit > 1 else text) * unit


def settings_of(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of all stages, the same for each: what a log of this size needs, then `settings`."""
    return {
        "embed.encoder": "precomputed",
        "embed.match": "id",
        "embed.path": str((folder / "made/vectors.parquet").resolve()),
        "quantize.codes": 256,
        "quantize.max_collision_rate": 1,
        "train.max_windows": 1,
        "train.valid_users": 2_000,
        "dense.enabled": False,
        "evaluate.users": 2_000,
        "evaluate.cooccurrence_neighbours": 200,
        **settings,
    }


def run_all(folder: Path, sizes: Sizes, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make the log where it is not there, measure the stages that have no row, and return the rows.

    Raises:
        SystemExit: a stage failed, or the folder has a log of other sizes.
    """
    made, work = folder / "made", folder / "work"
    path = folder / "rows.jsonl"
    if not (made / FACTS).exists():
        make(made, sizes)
    facts = json.loads((made / FACTS).read_text())
    if (facts["events"], facts["items"], facts["width"]) != (sizes.events, sizes.items, sizes.width):
        raise SystemExit(f"{made} has a log of other sizes: choose another folder, or remove it")
    (work / "data").mkdir(parents=True, exist_ok=True)
    (work / "data/checked.txt").write_text("checked by benchmarks.scale\n")
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for stage in STAGES:
        if any(row["stage"] == stage for row in rows):
            continue
        row = {"label": "after", **measure(stage, made, work, ROOT, settings_of(folder, settings))}
        row["command"] = f"python -m benchmarks.scale all FOLDER --events {sizes.events} --items {sizes.items}"
        row["command"] += f" --width {sizes.width}" + "".join(f" --set {key}={settings[key]}" for key in settings)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        say(_line(row))
    sums = {key: round(sum(row[key] for row in rows), 2) for key in SUMS}
    say(_line({"stage": "together", **sums, **{key: max(row[key] for row in rows) for key in PEAKS}}))
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return (
        f"{row['stage']:10} {row['cpu_seconds']:9,.1f} CPU s {row['wall_seconds']:9,.1f} s "
        f"{row['peak_rss_mib']:7,} MiB, {row['peak_anonymous_mib']:7,} without maps"
    )
