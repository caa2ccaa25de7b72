"""The stage dense in the tiny world of training."""

from typing import Any

from settings import read_params
from tiny_world import TinyWorld

from pipeline.config import Params
from pipeline.dense.stage import run

DENSE: dict[str, Any] = {
    "dim": 16,
    "heads": 2,
    "layers": 1,
    "dropout": 0.1,
    "learning_rate": 0.01,
    "batch_items": 100,
    "max_epochs": 8,
    "ema": 0.9,
    "validate_every": 10,
    "checkpoint_every": 7,
    "threads": 1,
    "device": "cpu",
}


def dense_params(**keys: Any) -> Params:
    """Small settings with some keys of `dense:` replaced, and `seed`."""
    seed = {"seed": keys.pop("seed")} if "seed" in keys else {}
    return read_params({"dense": {**DENSE, **keys}, **seed})


def train_dense(world: TinyWorld, name: str = "run", **keys: Any) -> dict[str, Any]:
    """Run the stage into `world.folder / name`."""
    out = world.folder / name
    return run(
        dense_params(**keys),
        interactions=world.folder / "interactions",
        embeddings=world.folder / "embeddings",
        splits=world.folder / "splits",
        output=out / "dense",
        reports=out / "reports",
        scratch=world.folder / "scratch",
    )


def dense_files(world: TinyWorld, name: str = "run") -> dict[str, bytes]:
    """Every file of models/dense of a run."""
    return {file.name: file.read_bytes() for file in sorted((world.folder / name / "dense").iterdir())}
