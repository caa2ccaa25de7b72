"""GR trains through the stage: it learns by draws and by the whole softmax, and a stopped run goes on alike."""

from typing import Any

import pandas as pd
import pytest
from tiny_world import TinyWorld, interrupt, make_params

from pipeline.generator import load_generator

TRAIN = {"max_windows": 1500, "batch_tokens": 100, "learning_rate": 0.02}
PUBLISHED = {"name": "gr", "temperature": 0.05, "negatives": 20, "content": False}


@pytest.mark.parametrize("strategy", ["full", "skipgr"])
@pytest.mark.parametrize("backbone", [{"name": "gr"}, PUBLISHED], ids=["all items", "draws"])
def test_it_learns_and_a_stopped_run_goes_on(
    world: TinyWorld, strategy: str, backbone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(strategy=strategy, backbone=backbone, train=TRAIN)
    world.train(params, "whole")
    interrupt(world, params, 9, monkeypatch)
    world.train(params)
    assert world.written() == world.written("whole")
    history = pd.read_csv(world.folder / "run/reports/history.csv")
    assert history["recall_at_10"].max() > 0.5  # by chance: 0.25
    loaded = load_generator(world.folder / "run/generator")
    assert loaded.model.wants_times
    assert loaded.config["backbone"]["temperature"] == backbone.get("temperature", 0)
