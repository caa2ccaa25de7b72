"""The network over items through the stages: what it is made of is said, what it knows travels with it."""

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from tiny_world import TinyWorld, interrupt, make_params, make_splits

from pipeline.artifacts import Embeddings, read_json
from pipeline.errors import UserError
from pipeline.generator import load_generator
from pipeline.training.names import read_names
from pipeline.training.negatives import counts_in_training

SASREC: dict[str, Any] = {"backbone": {"name": "sasrec"}, "train": {"max_windows": 300, "learning_rate": 0.02}}


def test_the_model_holds_its_content_vectors_and_which_items_training_saw(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.train(make_params(**SASREC))
    assert "train: 40 items by their ids and content vectors of width 6\n" in capsys.readouterr().out
    weights = load_file(world.folder / "run/generator/model.safetensors")
    vectors_IC = Embeddings.read(world.folder / "embeddings").vectors_Id
    lengths_I1 = np.linalg.norm(vectors_IC, axis=1, keepdims=True)
    np.testing.assert_allclose(weights["catalogue.content_IC"], vectors_IC / lengths_I1, rtol=1e-6)
    assert (weights["catalogue.trained_I"] == (counts_in_training(world.splits) > 0)).all()
    loaded = load_generator(world.folder / "run/generator")
    assert loaded.config["widths"] == [40]
    assert set(loaded.config["fingerprints"]) == {"embeddings", "splits"}
    assert loaded.items["code_1"].tolist() == list(range(40))
    world.train(make_params(**SASREC), "again")
    assert world.written() == world.written("again")


def test_items_without_content_are_their_ids_and_the_run_says_so(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.train(make_params(**{**SASREC, "backbone": {"name": "sasrec", "content": False}}))
    assert "train: 40 items by their ids alone (backbone.content is false)\n" in capsys.readouterr().out
    assert "catalogue.content_IC" not in load_file(world.folder / "run/generator/model.safetensors")
    (world.folder / "embeddings").unlink()
    Embeddings(np.zeros((40, 0), np.float32), {}).write(world.folder / "embeddings")
    world.train(make_params(**SASREC))
    assert "train: 40 items by their ids alone (embed.encoder is none, which" in capsys.readouterr().out
    shutil.rmtree(world.folder / "embeddings")
    world.train(make_params(**SASREC))
    assert (
        f"train: 40 items by their ids alone ({world.folder / 'embeddings'} is not here)\n" in capsys.readouterr().out
    )


def test_an_item_with_a_vector_of_zeros_is_counted(world: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    vectors_IC = Embeddings.read(world.folder / "embeddings").vectors_Id.copy()
    vectors_IC[[3, 7]] = 0
    (world.folder / "embeddings").unlink()
    Embeddings(vectors_IC, {}).write(world.folder / "embeddings")
    world.train(make_params(**SASREC))
    assert "width 6; 2 have a vector of zeros, and so their id alone\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("vectors_IC", "said"),
    [(np.ones((39, 6)), "has 39 vectors for 40 items"), (np.full((40, 6), np.nan), "of item 0 in .* not finite")],
)
def test_vectors_that_do_not_fit_are_refused(world: TinyWorld, vectors_IC: np.ndarray, said: str) -> None:
    (world.folder / "embeddings").unlink()
    Embeddings(vectors_IC.astype(np.float32), {}).write(world.folder / "embeddings")
    with pytest.raises(UserError, match=said):
        world.train(make_params(**SASREC))


def test_only_training_interactions_make_an_item_known() -> None:
    splits = make_splits([5, 1, 4], np.random.default_rng(0), items=12)
    items_N = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], np.int32)
    # Users hold 0 1 2 | 3 4, then 5 (all of it for training), then 6 7 | 8 9.
    counts_I = counts_in_training(replace(splits, items_N=items_N))
    assert np.flatnonzero(counts_I).tolist() == [0, 1, 2, 5, 6, 7]


def test_other_backbones_read_semantic_ids_alone(world: TinyWorld) -> None:
    names = read_names(make_params().backbone, world.splits, world.folder / "sids", world.folder / "nowhere")
    assert (names.line, names.content_IC, names.trained_I) == ("", None, None)
    assert list(names.inputs) == ["sids"]


def test_validation_holds_few_logits_at_once_and_finds_the_same(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.train(make_params(**SASREC), "whole")
    monkeypatch.setattr("pipeline.decoding.ranking.LOGITS", 40 * 7)  # seven users
    world.train(make_params(**SASREC), "parts")
    whole, parts = (pd.read_csv(world.folder / name / "reports/history.csv") for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(whole, parts)


def test_separators_mean_nothing_between_items(world: TinyWorld) -> None:
    backbone = {"name": "sasrec", "separators": True}
    timings = world.train(make_params(**{**SASREC, "backbone": backbone}))
    config = json.loads((world.folder / "run/generator/config.json").read_text())
    assert config["backbone"]["separators"] is False
    assert timings["tokens_trained"] < 4 * timings["windows_trained"]
    assert read_json(world.folder / "run/reports/timings.json")["keep_rate"] == 1


def test_padded_batches_compute_the_same(world: TinyWorld) -> None:
    backbone = {"name": "sasrec", "dropout": 0.0}
    packed, padded = (
        world.train(make_params(backbone=backbone, train={**SASREC["train"], "batching": batching}), batching)
        for batching in ("packed", "padded")
    )
    assert packed["windows_trained"] == padded["windows_trained"]
    ours, theirs = (load_file(world.folder / name / "generator/model.safetensors") for name in ("packed", "padded"))
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=2e-3)


@pytest.mark.parametrize("strategy", ["full", "skipgr"])
def test_a_large_catalogue_trains_by_draws_and_a_stopped_run_goes_on_with_them(
    world: TinyWorld, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.recipe.FULL_SOFTMAX_ITEMS", 39)
    monkeypatch.setattr("pipeline.training.recipe.NEGATIVES", 20)
    train = {"max_windows": 1500, "batch_tokens": 100, "learning_rate": 0.02, "accumulate": 2}
    params = make_params(strategy=strategy, backbone=SASREC["backbone"], train=train)
    world.train(params, "whole")
    interrupt(world, params, 9, monkeypatch)
    world.train(params)
    assert world.written() == world.written("whole")
    history = pd.read_csv(world.folder / "run/reports/history.csv")
    assert history["recall_at_10"].max() > 0.5  # by chance: 0.25


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "intrr"}, "strategy intrr makes one token of an item's Semantic ID, and backbone sasrec"),
        ({"strategy": "rastp"}, "strategy rastp prunes the tokens of an encoder, and backbone sasrec has none"),
        (
            {"strategy": "skipgr", "skipgr": {"level_ratios": [0.1, 0.2, 0.3]}},
            r"3 entries for the one level .* \(backbone sasrec predicts whole items\): set skipgr\.level_ratios=\[\]",
        ),
    ],
)
def test_what_needs_semantic_ids_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_params(**SASREC, **settings)
