"""The tiny world in a temporary folder, and torch's settings given back after each test."""

from pathlib import Path

import pytest
from evaluated_world import World, make_world


@pytest.fixture
def world(tmp_path: Path, torch_settings_given_back: None) -> World:
    return make_world(tmp_path)
