"""A model that answers by the fused views: logged, promoted and loaded, it says what recommend says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from evaluated_world import World, stored_world, write_dense

from pipeline.evaluate.recommend import recommend
from pipeline.evaluate.stage import run as evaluate
from pipeline.results.mlflow_client import MlflowClient
from pipeline.results.mlflow_model import log_model
from pipeline.results.ranks import Ranks
from pipeline.results.registry import champion
from pipeline.serving.promote import promote

HISTORIES = [["item-1", "item-2"], [f"item-{item}" for item in range(5)], ["item-7"]]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings_given_back: None) -> World:  # noqa: ARG001
    """An evaluated project with a store; it is the current folder."""
    return stored_world(tmp_path / "project", monkeypatch)


@pytest.mark.long
def test_a_fused_model_is_logged_promoted_and_loaded(world: World) -> None:
    write_dense(world)
    config = replace(world.params.evaluate, ranking="fused", filter_seen=True)
    evaluate(replace(world.params, evaluate=config), **world.inputs)
    origin = Ranks.read(world.paths["reports"] / "ranks.parquet").origin
    paths: Any = world.paths
    expected = [recommend(history=history, k=4, **paths) for history in HISTORIES]
    apart = [
        recommend(history=history, k=4, reports=world.root / "none", generator=world.paths["generator"])
        for history in HISTORIES
    ]
    assert expected != apart, "the generator alone says something else"
    client = MlflowClient()
    experiment = client.create_experiment("sidpipe", (world.root / "mlartifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    folders = {"generator": world.paths["generator"], "splits": world.paths["splits"]}
    ranks = world.paths["reports"] / "ranks.parquet"
    logged = log_model(run, experiment, ranks=ranks, tags={"strategy": "full"}, origin=origin, **folders)
    done = promote("workspace", "shop", "sidpipe", world.root / "served", samples=200)
    assert done.new
    assert champion("shop") is not None
    # What serves has its own copy of every view.
    for name in ("models", "reports", "data"):
        (world.root / name).rename(world.root / f"{name}-gone")
    for where in (f"models:/{logged}", "models:/shop@champion", str(world.root / "served/current")):
        model = mlflow.pyfunc.load_model(where)
        answers = model.predict(pd.DataFrame({"history": HISTORIES}), params={"k": 4})
        for rows, items, scores in zip(expected, answers["items"], answers["scores"], strict=True):
            assert list(items) == [row.item for row in rows]
            assert list(scores) == pytest.approx([row.score for row in rows], abs=1e-4)
