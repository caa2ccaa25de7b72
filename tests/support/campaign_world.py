"""Tiny campaigns: data of 60 users, a file of rows, and the command that runs it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from tiny_world import BACKBONE, TRAIN, write_world

from benchmarks.campaign import Campaign
from benchmarks.campaign_rows import Results, read_rows

TINY: dict[str, Any] = {
    "quantize.codes": 4,
    "quantize.levels": 2,
    "quantize.max_collision_rate": 1.0,
    "split.max_history": 6,
    "evaluate.bootstrap_samples": 20,
    **{f"backbone.{key}": value for key, value in BACKBONE.items()},
    **{f"train.{key}": value for key, value in TRAIN.items()},
}


def entry(arm: str = "full", *, seeds: tuple[int, ...] = (1,), measure: str = "quality", **changes: Any) -> Any:
    """A row of a campaign file; `changes` have two underscores for the dot."""
    return {
        "group": "tiny",
        "arm": arm,
        "data": "world",
        "presets": [],
        "set": {**TINY, "strategy": arm, **{key.replace("__", "."): value for key, value in changes.items()}},
        "seeds": list(seeds),
        "measure": measure,
        "seconds": 5,
    }


def campaign_of(folder: Path, entries: list[Any], **fields: Any) -> Campaign:
    """Write data and file below `folder`, and read the campaign."""
    if not (folder / "data").exists():
        world = folder / "data/world"
        write_world(world)
        (world / "sids").rename(folder / "sids")  # of other codes: a campaign makes its own
    file = folder / "campaign.yaml"
    file.write_text(yaml.safe_dump(entries))
    given = {"results": Results(folder / "out"), "known": [], "work": folder / "work", "commit": "abc1234"}
    return Campaign(rows=read_rows(file), data=folder / "data", **{**given, **fields})


def command(folder: Path, *options: str) -> "subprocess.Popen[str]":
    """Run the command line on the campaign below `folder`."""
    arguments = [str(folder / "campaign.yaml"), "--data", str(folder / "data"), "--results", str(folder / "out")]
    arguments += ["--work", str(folder / "work"), "--commit", "abc1234", *options]
    run = [sys.executable, "-m", "benchmarks.campaign", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.Popen(run, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
