"""The tiny world in a temporary folder, and torch's settings given back after each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from evaluated_world import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    threads, repeatable = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield make_world(tmp_path)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(repeatable)
