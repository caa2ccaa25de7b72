"""The tiny world on disk, and torch's settings given back after each test."""

from pathlib import Path

import pytest
from tiny_world import TinyWorld, write_world


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(inputs: TinyWorld, tmp_path: Path) -> TinyWorld:
    """The inputs that the stage reads, linked into a temporary folder of the test; no Semantic IDs."""
    for name in ("splits", "embeddings", "interactions"):
        (tmp_path / name).symlink_to(inputs.folder / name)
    return TinyWorld(tmp_path, inputs.splits, inputs.sids)


@pytest.fixture(autouse=True)
def _given_back(torch_settings_given_back: None) -> None:
    """Restores the settings after each test."""
