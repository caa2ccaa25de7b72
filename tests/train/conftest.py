"""The tiny world on disk, and torch's settings given back after each test."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_world import TinyWorld, make_sids, make_splits

from pipeline.artifacts import Sids, Splits, write_parquet


@pytest.fixture(scope="session")
def world_inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Splits, Sids]:
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    splits, sids = make_splits(rng.integers(2, 14, size=60).tolist(), rng), make_sids()
    splits.write(folder / "splits")
    sids.write(folder / "sids")
    names = [f"B{i:03d}" for i in range(40)]
    write_parquet(folder / "interactions" / "items.parquet", pd.DataFrame(
        {"item_id": np.arange(40, dtype=np.int32), "raw_id": names, "title": [f"Thing {n}" for n in names]}))
    return folder, Splits.read(folder / "splits"), sids


@pytest.fixture
def world(world_inputs: tuple[Path, Splits, Sids], tmp_path: Path) -> TinyWorld:
    """The inputs, copied by link into a folder of the test's own."""
    folder, splits, sids = world_inputs
    for name in ("splits", "sids", "interactions"):
        (tmp_path / name).symlink_to(folder / name)
    return TinyWorld(tmp_path, splits, sids)


@pytest.fixture(autouse=True)
def _torch_settings_given_back() -> Iterator[None]:
    """Training sets torch's threads and determinism for the process; other tests get theirs back."""
    threads, fixed = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(fixed)
