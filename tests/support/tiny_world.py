"""A small world to train in: users who walk through clusters of items, written as the earlier stages would."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from settings import read_params

from pipeline.artifacts import Embeddings, Sids, Splits, write_parquet
from pipeline.config import Params
from pipeline.train.stage import run
from pipeline.training.loop import Trainer

BACKBONE: dict[str, Any] = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "d_model": 16,
    "heads": 2,
    "d_head": 8,
    "d_ff": 32,
}
TRAIN: dict[str, Any] = {
    "max_windows": 1200,
    "batch_tokens": 400,
    "validate_every": 10,
    "checkpoint_every": 7,
    "threads": 1,
    "device": "cpu",
    "compile": False,
}


@dataclass(frozen=True)
class TinyWorld:
    """Where the inputs lie and where a run may write."""

    folder: Path
    splits: Splits
    sids: Sids

    def train(self, params: Params, name: str = "run") -> dict[str, Any]:
        """Train into `folder/name`."""
        out = self.folder / name
        return run(
            params,
            interactions=self.folder / "interactions",
            embeddings=self.folder / "embeddings",
            sids=self.folder / "sids",
            splits=self.folder / "splits",
            output=out / "generator",
            reports=out / "reports",
            scratch=self.folder / "scratch",
        )

    def written(self, name: str = "run") -> dict[str, bytes]:
        """Every file of a run that must not differ from one run to the next."""
        out = self.folder / name
        files = [*sorted((out / "generator").iterdir()), out / "reports" / "history.csv"]
        return {file.name: file.read_bytes() for file in files}


def make_params(**sections: Any) -> Params:
    """Small settings, with some replaced: `make_params(seed=1, train={"ema": 0.9})`."""
    train = {**TRAIN, **sections.pop("train", {})}
    backbone = {**BACKBONE, **sections.pop("backbone", {})}
    return read_params({"train": train, "backbone": backbone, **sections})


def make_splits(lengths: list[int], rng: np.random.Generator, items: int = 40, max_history: int = 6) -> Splits:
    """Leave-one-out splits of users whose next item is usually the neighbour of the last one."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    steps = np.where(rng.random(offsets[-1]) < 0.8, 1, rng.integers(items, size=offsets[-1]))
    items_N = (np.cumsum(steps) % items).astype(np.int32)
    held = np.asarray(lengths) >= 3
    last = offsets[1:]
    return Splits(
        items_N=items_N,
        timestamps_N=np.arange(offsets[-1]),
        offsets=offsets,
        train_end=np.where(held, last - 2, last),
        valid_target=np.where(held, last - 2, -1),
        test_target=np.where(held, last - 1, -1),
        summary={"max_history": max_history, "items": items},
    )


def make_sids(items: int = 40) -> Sids:
    codes_IL = np.stack([np.arange(items) // 8, np.arange(items) % 4, np.arange(items) % 8 // 4], 1).astype(np.int32)
    rng = np.random.default_rng(1)
    centroids = {
        f"level_{level}": rng.normal(size=(codes, 3)).astype(np.float32) for level, codes in ((1, items // 8), (2, 4))
    }
    return Sids(codes_IL, (items // 8, 4, 2), centroids, {})


def write_world(folder: Path) -> TinyWorld:
    """60 users, 40 items, 3 levels."""
    rng = np.random.default_rng(0)
    splits, sids = make_splits(rng.integers(2, 14, size=60).tolist(), rng), make_sids()
    splits.write(folder / "splits")
    sids.write(folder / "sids")
    Embeddings(rng.normal(size=(40, 6)).astype(np.float32), {}).write(folder / "embeddings")
    names = [f"B{i:03d}" for i in range(40)]
    write_parquet(
        folder / "interactions" / "items.parquet",
        pd.DataFrame(
            {"item_id": np.arange(40, dtype=np.int32), "raw_id": names, "title": [f"Thing {name}" for name in names]}
        ),
    )
    return TinyWorld(folder, Splits.read(folder / "splits"), sids)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next training, in this process, end with an error when it comes to this optimizer step."""
    train = Trainer._train

    def stopping(self: Trainer, *args: Any) -> None:
        if self.state.step == step:
            raise KeyboardInterrupt
        train(self, *args)

    monkeypatch.setattr(Trainer, "_train", stopping)


def interrupt(world: TinyWorld, params: Params, step: int, monkeypatch: pytest.MonkeyPatch, name: str = "run") -> None:
    """Train, in this process, until an error ends it at this optimizer step."""
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            world.train(params, name)


def lay_out(world: TinyWorld, **settings: Any) -> None:
    """Let the inputs lie where the graph has them, beside a params.yaml."""
    for name in ("splits", "sids", "embeddings", "interactions"):
        (world.folder / "data").mkdir(exist_ok=True)
        (world.folder / "data" / name).symlink_to(world.folder / name)
    (world.folder / "params.yaml").write_text(yaml.safe_dump(make_params(**settings).plain()))


def train_by_torchrun(world: TinyWorld, root: Path, **settings: Any) -> str:
    """The command that a user types, in a folder with the inputs where the graph has them. Returns what it printed."""
    lay_out(world, **settings)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "pipeline",
        "train",
    ]
    done = subprocess.run(
        command,
        cwd=world.folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
