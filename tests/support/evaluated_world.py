"""A tiny world for the evaluate stage, on disk: splits, an untrained generator, timings, raw user ids."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from settings import some, some_params

from pipeline.artifacts import Splits, fingerprint, write_json, write_parquet
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.sasrec import SasRec
from pipeline.catalogue import Catalogue
from pipeline.config import Params
from pipeline.count.stage import run as count
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.stage import run as evaluate
from pipeline.generator import save_generator
from pipeline.manifest import sealed
from pipeline.strategies.intrr.config import IntrrConfig
from pipeline.strategies.rastp.config import RastpConfig
from pipeline.strategies.registry import choose_strategies
from pipeline.training.config import TrainConfig

WIDTHS, ITEMS, USERS, MAX_HISTORY = (4, 4, 3), 20, 40, 5
TIMINGS = {"train_seconds": 1.5, "windows_per_second": 100.0, "parameters": 1000, "best_step": 7}


@dataclass(frozen=True)
class World:
    """Folders as the stages lay them out, and what is in them."""

    root: Path
    splits: Splits
    params: Params

    @property
    def paths(self) -> dict[str, Path]:
        return {
            "splits": self.root / "data/splits",
            "generator": self.root / "models/generator",
            "reports": self.root / "reports",
        }

    @property
    def inputs(self) -> dict[str, Path]:
        """The folders of `evaluate`."""
        return {**self.paths, "counting": self.root / "models/counting"}


def stored_world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An evaluated project with a store; it becomes the current folder."""
    made = make_world(folder)
    monkeypatch.chdir(made.root)
    monkeypatch.setenv("DVC_ROOT", str(made.root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made.root}/mlflow.db")
    evaluate(made.params, **made.inputs)
    return made


def random_splits(rng: np.random.Generator) -> Splits:
    """Leave-one-out sequences of 3 to 9 items; about half of the targets share their timestamp with the item before."""
    lengths = rng.integers(3, 10, USERS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ends = offsets[1:]
    times = 1000 + np.cumsum(rng.integers(0, 2, offsets[-1]))
    return Splits(
        items_N=rng.integers(0, ITEMS, offsets[-1]).astype(np.int32),
        timestamps_N=times,
        offsets=offsets,
        train_end=ends - 2,
        valid_target=ends - 2,
        test_target=ends - 1,
        summary={"max_history": MAX_HISTORY, "items": ITEMS},
    )


def write_generator(
    world: World, seed: int = 0, strategy: str = "full", items: int = ITEMS, backbone: Literal["t5", "hstu"] = "t5"
) -> None:
    rng = np.random.default_rng(seed)
    codes = np.stack(np.unravel_index(rng.permutation(np.prod(WIDTHS))[:items], WIDTHS), 1)
    catalogue = Catalogue(codes, WIDTHS)
    torch.manual_seed(seed)
    config = some(
        BackboneConfig, name=backbone, encoder_layers=1, decoder_layers=1, d_model=16, heads=2, d_head=8, d_ff=16
    )
    frame = pd.DataFrame(
        {
            "item_id": np.arange(items, dtype=np.int32),
            "raw_id": [f"item-{i}" for i in range(items)],
            "title": [f"Title {i}" if i % 4 else None for i in range(items)],
        }
    )
    sections: dict[str, Any] = {"rastp": asdict(some(RastpConfig)), "intrr": asdict(some(IntrrConfig))}
    model = choose_strategies(strategy, sections).network().build(config, catalogue)
    save_generator(
        world.paths["generator"],
        model,
        catalogue,
        frame,
        {
            "strategy": strategy,
            **sections,
            "pad_to": 0,
            "max_history": MAX_HISTORY,
            "seed": seed,
            "dataset": "demo",
            "train": {},
            "fingerprints": {"splits": fingerprint(world.paths["splits"])},
        },
    )
    count(world.params, splits=world.paths["splits"], output=world.inputs["counting"])


def write_dense(world: World, splits: str = "") -> None:
    """A network over items that nobody trained, but for larger weights, so that histories matter."""
    rng = np.random.default_rng(5)
    catalogue = Catalogue(
        np.arange(ITEMS)[:, None],
        (ITEMS,),
        digit=False,
        content_IC=rng.normal(size=(ITEMS, 6)).astype(np.float32),
        trained_I=np.arange(ITEMS) % 5 > 0,
    )
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"decoder_layers": 1, "d_model": 16, "heads": 2, "d_head": 8, "d_ff": 16}
    config = some(BackboneConfig, name="sasrec", separators=False, dropout=0.0, **sizes)
    model = SasRec(config, catalogue)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    items = pd.DataFrame({"item_id": np.arange(ITEMS, dtype=np.int32), "raw_id": [f"item-{i}" for i in range(ITEMS)]})
    about = {"strategy": "full", "pad_to": 0, "max_history": MAX_HISTORY, "seed": 5, "dataset": "demo", "train": {}}
    fingerprints = {"splits": splits or fingerprint(world.paths["splits"])}
    save_generator(
        world.root / "models/dense", model, catalogue, items, {**about, "fingerprints": fingerprints}, stage="dense"
    )
    write_json(
        world.paths["reports"] / "dense.json",
        sealed({"enabled": True, "dense_train_seconds": 2.5}, world.paths["reports"], ()),
    )


def make_world(root: Path) -> World:
    evaluate = some(EvaluateConfig, beam=10, bootstrap_samples=50)
    params = some_params(evaluate=evaluate, train=some(TrainConfig, threads=1))
    world = World(root, random_splits(np.random.default_rng(1)), params)
    world.splits.write(world.paths["splits"])
    write_generator(world)
    write_json(world.paths["reports"] / "timings.json", TIMINGS)
    users = pd.DataFrame({"user_id": np.arange(USERS, dtype=np.int32), "raw_id": [f"user-{u}" for u in range(USERS)]})
    write_parquet(root / "data/interactions/users.parquet", users)
    return world


@pytest.fixture
def world(tmp_path: Path, torch_settings_given_back: None) -> World:  # noqa: ARG001 - asked for what it does
    """The tiny world in a temporary folder, and torch's settings given back after each test."""
    return make_world(tmp_path)
