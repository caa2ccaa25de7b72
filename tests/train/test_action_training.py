"""Actions from the splits to a trained model: they tell what comes next, they are learned, and ranking reads them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_world import TinyWorld, interrupt, make_params

from pipeline.artifacts import Splits, read_json
from pipeline.decoding.ranking import rank_targets
from pipeline.errors import UserError
from pipeline.generator import load_generator
from pipeline.packing.histories import Histories

TRAIN = {"max_windows": 9000, "batch_tokens": 300, "learning_rate": 0.02, "validate_every": 100}
INGEST = {"actions": {"like": [1], "watch_seconds": [3, 5]}}
SUMMARY = {"actions": {"names": ["like", "watch_seconds"], "edges": [[1.0], [3.0, 5.0]]}}


@pytest.fixture
def acted(world: TinyWorld) -> TinyWorld:
    """The item after a liked one is the next of the ring, after another one the 20th next; ratings follow the item."""
    rng = np.random.default_rng(3)
    likes_N = rng.integers(0, 2, len(world.splits.items_N))
    items_N = np.zeros_like(world.splits.items_N)
    for first, end in zip(world.splits.offsets[:-1], world.splits.offsets[1:], strict=True):
        items_N[first] = rng.integers(40)
        for position in range(first + 1, end):
            items_N[position] = (items_N[position - 1] + (1 if likes_N[position - 1] else 20)) % 40
    splits = replace(
        world.splits,
        items_N=items_N,
        actions_NA=np.stack([likes_N, items_N % 3], 1).astype(np.uint8),
        summary={**world.splits.summary, **SUMMARY},
    )
    (world.folder / "splits").unlink()  # a link to the inputs of all tests
    splits.write(world.folder / "splits")
    return TinyWorld(world.folder, Splits.read(world.folder / "splits"), world.sids)


def best(world: TinyWorld, name: str) -> float:
    return float(pd.read_csv(world.folder / name / "reports/history.csv")["ndcg_at_5"].max())


@pytest.mark.parametrize("backbone", ["gr", "decoder"])
@pytest.mark.parametrize("strategy", ["full", "skipgr"])
def test_a_network_with_actions_knows_which_item_comes_next(
    acted: TinyWorld, backbone: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"strategy": strategy, "train": TRAIN}
    acted.train(make_params(backbone={"name": backbone, "separators": False}, **settings), "without")
    params = make_params(backbone={"name": backbone, "separators": False, "actions": True}, ingest=INGEST, **settings)
    acted.train(params, "whole")
    assert best(acted, "whole") > best(acted, "without") + 0.03
    interrupt(acted, params, 9, monkeypatch)
    acted.train(params)
    assert acted.written() == acted.written("whole")
    assert "action_sizes" not in read_json(acted.folder / "without/generator/config.json")


def test_the_saved_model_predicts_actions_and_ranks_by_them(acted: TinyWorld) -> None:
    acted.train(make_params(backbone={"name": "gr", "actions": True}, ingest=INGEST, train=TRAIN))
    loaded = load_generator(acted.folder / "run/generator")
    assert loaded.model.action_sizes == (2, 3)
    items = torch.arange(40)
    histories = Histories.pack(np.full(40, 7), np.arange(41), times_N=np.zeros(40, np.int64))
    with torch.no_grad():
        (_, likes, ratings) = loaded.model(histories, items)
    assert likes.shape == (40, 2)
    assert (ratings.argmax(1) == items % 3).float().mean() > 0.8
    ranks = [
        rank_targets(loaded.model, loaded.catalogue, splits, "test", beam=40).ranks_U
        for splits in (acted.splits, replace(acted.splits, actions_NA=1 - np.asarray(acted.splits.actions_NA) % 2))
    ]
    assert ranks[0].mean() < ranks[1].mean()


def test_a_log_without_actions_is_refused(world: TinyWorld) -> None:
    with pytest.raises(UserError, match=r"backbone\.actions is true, and data/splits has no actions") as raised:
        world.train(make_params(backbone={"name": "gr", "actions": True}, ingest=INGEST))
    assert "name columns of the log in ingest.actions" in str(raised.value)


def test_splits_hold_actions_and_forget_those_of_an_earlier_split(acted: TinyWorld) -> None:
    actions = acted.splits.actions
    assert actions is not None
    assert (actions.names, actions.sizes) == (("like", "watch_seconds"), (2, 3))
    found = acted.splits.actions_of(np.array([4, 0]))
    assert found is not None
    assert found.tolist() == np.asarray(acted.splits.actions_NA)[[4, 0]].tolist()
    replace(acted.splits, actions_NA=None, summary={"max_history": 6, "items": 40}).write(acted.folder / "splits")
    again = Splits.read(acted.folder / "splits")
    assert again.actions is None
    assert again.actions_of(np.array([0])) is None
    assert not (acted.folder / "splits/actions_NA.npy").exists()
