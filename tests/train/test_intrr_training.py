"""intrr through the whole of training: what is written, resumed, rebuilt, decoded and refused."""

import dataclasses
import itertools
import json
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from tiny_world import TinyWorld, interrupt, make_params

from pipeline.artifacts import Embeddings
from pipeline.config import Params
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.decoding.ranking import generate_items, histories_of, rank_targets
from pipeline.errors import UserError
from pipeline.generator import load_generator
from pipeline.packing.histories import Histories
from pipeline.strategies.intrr.config import IntrrConfig

SMALL: dict[str, Any] = {"hidden": 32, "digit_width": 6}


def recursive(**sections: Any) -> Params:
    """Short training; batches of about as many windows as `full` has."""
    intrr, train = SMALL | sections.pop("intrr", {}), sections.pop("train", {})
    train = {"max_windows": 600, "batch_tokens": 400, **train}
    return make_params(strategy="intrr", intrr=intrr, train=train, **sections)


def history(world: TinyWorld, name: str = "run") -> pd.DataFrame:
    return pd.read_csv(world.folder / name / "reports" / "history.csv")


@pytest.mark.parametrize(
    "options",
    [
        {"alignment_items": "sample", "codebooks": "quantizer"},
        {
            "mix": "straight_through",
            "codebooks": "quantizer",
            "alignment_items": "batch_occurrences",
            "uid_start": "codes",
            "uid_content": True,
            "uid_dropout": 0.1,
        },
    ],
    ids=["a sample", "all options together"],
)
def test_a_stopped_run_ends_with_the_same_bytes(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    params = recursive(intrr=options, train={"ema": 0.9, "accumulate": 2}, backbone={"dropout": 0.1})
    world.train(params, "straight")

    interrupt(world, params, 12, monkeypatch, "stopped")
    world.train(params, "stopped")
    assert world.written("stopped") == world.written("straight")


@pytest.mark.parametrize(
    ("options", "backbone", "targets"),
    [
        ({}, "t5", "last"),
        ({"tie_break": "uid", "uid_dim": 5}, "decoder", "last"),
        ({}, "hstu", "all"),
        ({"ablation": "no_sharing"}, "hstu", "last"),
        ({"uid_content": True}, "t5", "last"),
        ({"ablation": "no_redistribution", "alignment": 0.0}, "t5", "last"),
    ],
)
def test_the_saved_model_ranks_as_the_trained_one_did(
    world: TinyWorld, options: dict[str, Any], backbone: str, targets: str
) -> None:
    params = recursive(intrr=options, backbone={"name": backbone}, train={"targets": targets})
    world.train(params)
    loaded = load_generator(world.folder / "run" / "generator")
    assert IntrrConfig(**loaded.config["intrr"]) == params.strategies["intrr"]
    ranking = rank_targets(loaded.model, loaded.catalogue, world.splits, "valid", beam=10)
    written, best = history(world), json.loads((world.folder / "run" / "reports" / "timings.json").read_text())
    recall = written[written["step"] == best["best_step"]]["recall_at_10"].iloc[0]
    assert (ranking.ranks_U > 0).mean() == pytest.approx(float(recall))


@pytest.mark.parametrize("backbone", ["t5", "decoder"])
def test_a_network_whose_layers_are_most_of_it_loads(world: TinyWorld, backbone: str) -> None:
    wide = {"name": backbone, "d_ff": 256, "ff_hidden_layers": 2}
    world.train(recursive(backbone=wide))
    loaded = load_generator(world.folder / "run" / "generator")
    layers = sum(
        weight.numel() for name, weight in loaded.model.named_parameters() if "encoder." in name or "blocks." in name
    )
    assert layers > 0.5 * sum(weight.numel() for weight in loaded.model.parameters())


def test_validation_s_loss_is_the_log_probability_that_decoding_gives(world: TinyWorld) -> None:
    world.train(recursive())
    model = load_generator(world.folder / "run" / "generator").model
    positions_U = world.splits.targets("valid")[1]
    items, offsets = histories_of(world.splits, positions_U)
    scores_UI = score_catalogue(model, Histories.pack(items, offsets))
    own_U = scores_UI[np.arange(len(positions_U)), world.splits.items_N[positions_U]]
    written = history(world)
    best = written.loc[cast(int, written["recall_at_10"].idxmax())]  # the first of equal ones
    assert -own_U.mean().item() == pytest.approx(best["valid_loss"], rel=1e-4)
    assert written["valid_loss"].iloc[-1] < written["valid_loss"].iloc[0]


def test_every_way_of_decoding_works_on_a_loaded_model(world: TinyWorld) -> None:
    world.train(recursive())
    loaded = load_generator(world.folder / "run" / "generator")
    items, offsets = histories_of(world.splits, world.splits.targets("test")[1][:9])
    found = [
        generate_items(loaded.model, items, offsets, beam=40, decoding=decoding)
        for decoding in ("constrained", "exact")
    ]
    np.testing.assert_allclose(found[0].scores_WK, found[1].scores_WK, atol=1e-4)
    free = generate_items(loaded.model, items, offsets, beam=5 * 4 * 6, decoding="unconstrained")
    assert ((free.items_WK >= 0).sum(1) == 40).all()
    eval_skips = generate_items(loaded.model, items, offsets, beam=10, drop_seen=6)
    for row, (first, last) in enumerate(itertools.pairwise(offsets)):
        assert not set(eval_skips.items_WK[row]) & set(items[first:last].tolist())


def test_what_is_counted_is_one_token_per_item(world: TinyWorld) -> None:
    world.train(recursive())
    timings = json.loads((world.folder / "run" / "reports" / "timings.json").read_text())
    assert timings["keep_rate"] == 1
    assert timings["tokens_per_step"] <= 400 // 4
    assert (world.folder / "run" / "reports" / "kept_by_level.csv").read_text() == "level,kept\nitem,1.0\n"


def test_the_loss_does_not_depend_on_how_a_step_is_split(world: TinyWorld) -> None:
    for parts in (1, 3):
        world.train(recursive(train={"accumulate": parts, "max_windows": 300}, backbone={"dropout": 0.0}), str(parts))
    one, three = history(world, "1"), history(world, "3")
    np.testing.assert_allclose(one["train_loss"], three["train_loss"], rtol=1e-4)


def test_bfloat16_stays_near_float32(world: TinyWorld) -> None:
    for precision in ("float32", "bfloat16"):
        world.train(recursive(train={"precision": precision, "max_windows": 300}, backbone={"dropout": 0.0}), precision)
    exact, rounded = history(world, "float32"), history(world, "bfloat16")
    np.testing.assert_allclose(rounded["train_loss"], exact["train_loss"], rtol=0.02)
    assert not rounded["train_loss"].equals(exact["train_loss"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "rastp+intrr"}, "a single token"),
        ({"strategy": "intrr", "train": {"batching": "padded"}}, "set train.batching=packed"),
        ({"strategy": "intrr", "intrr": {"alignment": -1}}, "intrr.alignment is -1, expected a number from 0"),
        ({"strategy": "intrr", "intrr": {"hidden": 0}}, "intrr.hidden is 0, expected a whole number from 1"),
        (
            {"strategy": "intrr", "intrr": {"tie_break": "uid"}, "quantize": {"collisions": "none"}},
            "set quantize.collisions=digit",
        ),
        ({"intrr": {"mix": "hard"}}, "intrr.mix is 'hard'"),
        (
            {
                "strategy": "intrr",
                "intrr": {"uid_content": True},
                "embed": {"encoder": "none"},
                "quantize": {"interactions": 1.0},
            },
            "set another embed.encoder, or intrr.uid_content=false",
        ),
    ],
    ids=["with rastp", "padded", "negative", "no hidden units", "nothing to break", "unknown mix", "no vectors"],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_params(**settings)


def test_too_narrow_a_digit_is_refused_before_training(world: TinyWorld) -> None:
    with pytest.raises(UserError, match=r"2 items share the codes \[0, 0\]: item_id 0, 4"):
        world.train(recursive(intrr={"digit_width": 1}))
    assert not (world.folder / "run").exists()


def test_content_comes_from_the_vectors_and_stays_with_the_model(world: TinyWorld) -> None:
    params = recursive(intrr={"uid_content": True}, train={"max_windows": 60})
    world.train(params)
    vectors_IC = Embeddings.read(world.folder / "embeddings").vectors_Id
    weights = load_file(world.folder / "run/generator/model.safetensors")
    content_IC = vectors_IC / np.linalg.norm(vectors_IC, axis=1, keepdims=True)
    np.testing.assert_allclose(weights["catalogue.content_IC"], content_IC, rtol=1e-6)
    assert [name for name, array in weights.items() if array.shape == content_IC.shape] == ["catalogue.content_IC"]
    fingerprints = json.loads((world.folder / "run/generator/config.json").read_text())["fingerprints"]
    assert set(fingerprints) == {"sids", "splits", "embeddings"}


@pytest.mark.parametrize(
    ("vectors_IC", "said"),
    [
        (np.zeros((40, 0), np.float32), "have width 0"),
        (np.ones((39, 3), np.float32), "39 vectors for 40 items"),
        (np.full((40, 3), np.nan, np.float32), "not finite"),
        (None, "intrr.uid_content=false"),
    ],
    ids=["no width", "too few", "not finite", "missing"],
)
def test_content_that_is_not_there_is_refused(world: TinyWorld, vectors_IC: np.ndarray | None, said: str) -> None:
    (world.folder / "embeddings").unlink()
    if vectors_IC is not None:
        Embeddings(vectors_IC, {}).write(world.folder / "embeddings")
    with pytest.raises(UserError, match=said):
        world.train(recursive(intrr={"uid_content": True}))


@pytest.mark.gpu
@pytest.mark.parametrize("items", ["batch_distinct", "all", "sample"])
def test_a_gpu_trains_as_the_cpu_does(world: TinyWorld, items: str) -> None:
    train = {"precision": "float32", "max_windows": 1200, "compile": True}
    for device in ("cpu", "cuda"):
        world.train(
            recursive(intrr={"alignment_items": items}, backbone={"dropout": 0.0}, train={**train, "device": device}),
            device,
        )
    cpu, gpu = (history(world, device) for device in ("cpu", "cuda"))
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_allclose(gpu[name], cpu[name], atol=0.02 if items == "sample" else 1e-3)
    # Validation has 50 users; a search that was recorded must see the vectors of each validation.
    np.testing.assert_allclose(gpu["recall_at_10"], cpu["recall_at_10"], atol=0.06)


@pytest.mark.parametrize(
    "skipgr",
    [{}, {"apply_to": "both", "input_unit": "item", "token_ratio": 0.3}],
    ids=["targets and sequences", "items of the histories too"],
)
def test_skipgr_skips_around_it(world: TinyWorld, skipgr: dict[str, Any]) -> None:
    params = dataclasses.replace(recursive(skipgr=skipgr, train={"max_windows": 1500}), strategy="intrr+skipgr")
    timings = world.train(params)
    assert timings["windows_trained"] < 1450
    losses = history(world)["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    loaded = load_generator(world.folder / "run" / "generator")
    ranking = rank_targets(loaded.model, loaded.catalogue, world.splits, "valid", beam=10)
    assert (ranking.ranks_U > 0).mean() > 0.1


def test_skipgr_that_skips_nothing_trains_as_intrr_alone(world: TinyWorld) -> None:
    params = recursive(skipgr={"token_ratio": 0.0, "sequence_ratio": 0.0})
    world.train(params, "alone")
    world.train(dataclasses.replace(params, strategy="intrr+skipgr"), "nothing")
    assert world.written("nothing")["model.safetensors"] == world.written("alone")["model.safetensors"]
