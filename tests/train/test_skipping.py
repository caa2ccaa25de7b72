"""skipgr through the whole of training: what is skipped, counted, written, resumed and shared between processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from tiny_world import TinyWorld, interrupt, make_params, train_by_torchrun

from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.generator import load_generator
from pipeline.packing.shape import Shape
from pipeline.training.loader import BatchLoader
from pipeline.training.windows import Epochs

SMALL: dict[str, Any] = {"max_windows": 1900, "checkpoint_every": 4}  # five epochs and a bit
MUCH: dict[str, Any] = {"token_ratio": 0.3, "sequence_ratio": 0.5, "apply_to": "both", "rescore_every": 3}


def skipping(strategy: str = "skipgr", train: dict[str, Any] | None = None, **skipgr: Any) -> Params:
    chosen = {"skipgr": {**MUCH, **skipgr}, "rastp": {"after_layer": 1}}
    return make_params(strategy=strategy, train={**SMALL, **(train or {})}, **chosen)


def timings(world: TinyWorld, name: str = "run") -> dict[str, float]:
    found: dict[str, float] = json.loads((world.folder / name / "reports" / "timings.json").read_text())
    return found


def csv(world: TinyWorld, file: str, name: str = "run") -> pd.DataFrame:
    return pd.read_csv(world.folder / name / "reports" / f"{file}.csv")


def skipped(world: TinyWorld, name: str = "run") -> dict[str, bytes]:
    """All that a run says of what it skipped."""
    reports = world.folder / name / "reports"
    return {path.name: path.read_bytes() for path in [reports / "passes.csv", *sorted((reports / "skipped").iterdir())]}


@pytest.mark.parametrize("rule", ["low_entropy", "static_low_entropy", "random_step"])
def test_a_run_that_was_stopped_in_mid_epoch_ends_with_the_same_bytes(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    params = skipping(rule=rule)
    world.train(params, "straight")
    for step in (10, 17):  # both resume from a checkpoint inside an epoch that skips
        interrupt(world, params, step, monkeypatch, "stopped")
    world.train(params, "stopped")
    assert world.written("stopped") == world.written("straight")
    assert skipped(world, "stopped") == skipped(world, "straight")
    steps = csv(world, "passes", "straight")["windows"]
    assert steps[0] == steps.max() > steps[1]


def test_it_takes_the_epochs_of_full_and_less_of_everything_else(world: TinyWorld) -> None:
    world.train(skipping("full"), "full")
    world.train(skipping(), "skipgr")
    whole, less = timings(world, "full"), timings(world, "skipgr")
    epochs, windows = csv(world, "passes", "skipgr"), len(Epochs(world.splits, "random_start", 42))
    assert len(epochs) == len(csv(world, "passes", "full")) == -(-1900 // windows)
    assert epochs["windows"].sum() == less["windows_trained"] < 0.9 * whole["windows_trained"]
    assert epochs["encoder_tokens"].sum() == less["tokens_trained"]
    assert less["tokens_trained"] / less["windows_trained"] < 0.9 * whole["tokens_trained"] / whole["windows_trained"]
    assert epochs["decoder_tokens"].sum() == less["decoder_tokens_trained"] < 3 * less["windows_trained"]
    assert less["target_tokens_trained"] <= less["decoder_tokens_trained"]
    assert less["bookkeeping_seconds"] > 0
    assert "sequences_skipped" not in whole


def test_equal_steps_are_as_many_as_those_of_full_and_end_with_the_same_bytes_when_stopped(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = skipping(equal_steps=True, apply_to="loss")
    world.train(skipping("full"), "full")
    world.train(params, "straight")
    for step in (10, 17):
        interrupt(world, params, step, monkeypatch, "stopped")
    world.train(params, "stopped")
    assert world.written("stopped") == world.written("straight")
    assert skipped(world, "stopped") == skipped(world, "straight")
    whole, fewer = csv(world, "history", "full"), csv(world, "history", "straight")
    assert whole["step"].tolist() == fewer["step"].tolist()  # so that both are validated at the same points
    assert fewer["windows"].iloc[-1] < 0.9 * whole["windows"].iloc[-1]
    # Filled up, the same share of windows makes fewer steps.
    world.train(skipping(apply_to="loss"), "filled")
    assert csv(world, "history", "filled")["step"].iloc[-1] < 0.9 * whole["step"].iloc[-1]


def test_by_windows_it_is_validated_at_the_points_of_full_also_after_a_stop(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_windows = {"validate_every": 300, "validate_in": "windows"}
    params = skipping(train=by_windows, first_skipping_epoch=1)
    world.train(skipping("full", by_windows), "full")
    world.train(params, "straight")
    # Steps are filled up with later windows, so that fewer steps lead to the same multiples of 300.
    whole, fewer = csv(world, "history", "full"), csv(world, "history", "straight")
    assert len(whole) == len(fewer) == 1900 // 300 + 1  # the end is measured, too
    assert fewer["step"].iloc[-1] < whole["step"].iloc[-1]
    per_step = whole["windows"].iloc[-1] / whole["step"].iloc[-1]
    assert (whole["windows"][:-1] - 300 * (whole.index[:-1] + 1)).between(0, 1.5 * per_step).all()
    for step in (10, 17):
        interrupt(world, params, step, monkeypatch, "stopped")
    world.train(params, "stopped")
    assert world.written("stopped") == world.written("straight")


def test_windows_and_auto_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"train\.validate_every auto counts arithmetic"):
        make_params(train={"validate_every": "auto", "validate_in": "windows"})


def test_a_run_that_never_skips_or_never_anneals_says_so(world: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world.train(skipping(first_skipping_epoch=30))
    assert "no epoch skipped anything" in capsys.readouterr().out
    world.train(skipping(train={"patience": 1, "validate_every": 12, "learning_rate": 1e-9}, anneal_epochs=1))
    assert "patience ended training" in capsys.readouterr().out
    world.train(skipping(anneal_epochs=1))
    said = capsys.readouterr().out
    assert "patience ended training" not in said
    assert "no epoch skipped" not in said


@pytest.mark.parametrize("rule", ["low_entropy", "static_low_entropy"])
def test_skipping_begins_with_the_epoch_that_was_asked_for(world: TinyWorld, rule: str) -> None:
    world.train(skipping(first_skipping_epoch=3, rule=rule))
    epochs = csv(world, "passes")
    assert (epochs["tokens_skipped"] > 0).tolist() == [number >= 3 for number in epochs["pass"]]
    assert (epochs["sequences_skipped"] > 0).tolist() == [number >= 3 for number in epochs["pass"]]
    whole = len(Epochs(world.splits, "random_start", 42))
    assert (epochs["windows"].iloc[:3] == whole).all()
    assert epochs["windows"].iloc[3] < whole


def test_the_last_level_alone_can_be_skipped_and_shortens_the_decoder(world: TinyWorld) -> None:
    chosen = {**MUCH, "level_ratios": [0.0, 0.5], "sequence_ratio": 0.0, "apply_to": "loss"}
    world.train(make_params(strategy="skipgr", train=SMALL, skipgr=chosen, quantize={"levels": 2}))
    epochs = csv(world, "passes").iloc[1:-1]
    assert (epochs["tokens_skipped_1"] == 0).all()
    assert epochs["tokens_skipped_2"].to_numpy() == pytest.approx(0.5, abs=0.01)
    # Of 3 positions (two codes and the digit) half of the targets need one.
    once = epochs[epochs["rescored"] == 0]
    assert (once["decoder_tokens"] / once["windows"]).to_numpy() == pytest.approx(2.0, abs=0.05)


def test_ratios_of_0_train_as_full_does(world: TinyWorld) -> None:
    nothing: dict[str, Any] = {"token_ratio": 0.0, "sequence_ratio": 0.0}
    for plain, composed in (("full", "skipgr"), ("rastp", "rastp+skipgr")):
        world.train(skipping(plain), plain)
        world.train(skipping(composed, **nothing, input_unit="item"), composed)
        for file in ("model.safetensors", "history.csv"):
            assert world.written(composed)[file] == world.written(plain)[file]
        assert skipped(world, composed) == skipped(world, plain)


def test_the_epochs_say_what_was_decided(world: TinyWorld) -> None:
    world.train(skipping())
    epochs = csv(world, "passes")
    assert epochs["pass"].tolist() == list(range(len(epochs)))
    first, later = epochs.iloc[0], epochs.iloc[1:]
    assert (first[["sequences_skipped", "tokens_skipped", "rescored"]] == 0).all()
    assert later["tokens_skipped"].to_numpy() == pytest.approx(0.3, abs=0.002)
    for level in (1, 2):
        assert later[f"tokens_skipped_{level}"].to_numpy() == pytest.approx(0.3, abs=0.002)
        assert (later[f"threshold_{level}"] > 0).all()
    assert later["rescored"].tolist() == [int(number % 3 == 0) for number in later["pass"]]
    assert later["sequences_skipped"].between(0.1, 0.5).all()
    assert (later["weight_sum"] / first["windows"]).iloc[:-1].between(0.6, 1.2).all()
    windows = len(Epochs(world.splits, "random_start", 42))
    assert first["windows"] == first["weight_sum"] == windows


def test_who_was_skipped_is_told_by_level_popularity_and_history(world: TinyWorld) -> None:
    world.train(skipping())
    epochs = csv(world, "passes").iloc[1:]
    windows = len(Epochs(world.splits, "random_start", 42))
    by_level = csv(world, "skipped/by_level")
    assert by_level["level"].tolist() == ["level 1", "level 2", "level 3"]
    assert by_level["skipped"].tolist() == pytest.approx(
        [epochs[f"tokens_skipped_{level}"].mean() for level in (1, 2, 3)], abs=1e-5
    )
    for name in ("by_popularity", "by_history"):
        bins = csv(world, f"skipped/{name}")
        assert bins["interactions"].sum() == windows * len(epochs)
        for column in ("tokens_skipped", "sequences_skipped"):
            mean = (bins[column] * bins["interactions"]).sum() / bins["interactions"].sum()
            assert mean == pytest.approx(epochs[column].mean(), abs=1e-4)
    histogram = csv(world, "skipped/entropy")
    assert (histogram.groupby(["pass", "level"])["tokens"].sum() == windows).all()


def test_the_store_is_written_by_flat_position(world: TinyWorld) -> None:
    world.train(skipping())
    scores_NL = load_file(world.folder / "run" / "reports" / "skipped" / "store.safetensors")["scores"]
    splits = world.splits
    scored = np.concatenate(
        [np.arange(first + 1, end) for first, end in zip(splits.offsets, splits.train_end, strict=False)]
    )
    assert set(np.flatnonzero(scores_NL[:, 0] >= 0)) == set(scored)
    assert (scores_NL[scored] <= np.log([5, 4, 2]) + 1e-5).all()


def test_full_writes_the_same_tables_with_nothing_skipped(world: TinyWorld) -> None:
    world.train(skipping("full"))
    assert set(skipped(world)) == {"passes.csv", "by_level.csv"}
    assert set(csv(world, "passes")["sequences_skipped"]) == {0}
    assert set(csv(world, "skipped/by_level")["skipped"]) == {0}
    world.train(skipping())
    assert len(skipped(world)) == 6
    world.train(skipping("full"))
    assert set(skipped(world)) == {"passes.csv", "by_level.csv"}


def test_the_last_epochs_can_be_full(world: TinyWorld) -> None:
    world.train(skipping(anneal_epochs=2))
    windows = len(Epochs(world.splits, "random_start", 42))
    trained = csv(world, "passes")["windows"].tolist()
    last = 1900 // windows - 2
    assert [count == windows for count in trained[:-1]] == [
        number == 0 or number >= last for number in range(len(trained) - 1)
    ]


def test_batches_that_are_filled_to_one_shape_train_the_same(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are filled as on a GPU, where a recorded step wants few shapes."""
    params = make_params(
        strategy="skipgr",
        skipgr=MUCH,
        backbone={"dropout": 0.0},
        train={**SMALL, "learning_rate": 1e-4, "batch_tokens": 1000},
    )
    world.train(params, "plain")
    make, batches, shapes = BatchLoader.__init__, BatchLoader._batches, set()

    def make_filling(self: BatchLoader, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        self.shape = Shape(144, 320)

    def noting(self: BatchLoader, step: Any, shape: Any) -> Any:
        made = batches(self, step, shape)
        shapes.add((len(made[0].targets_W), len(made[0].histories.items_N)))
        return made

    monkeypatch.setattr(BatchLoader, "__init__", make_filling)
    monkeypatch.setattr(BatchLoader, "_batches", noting)
    world.train(params, "filled")
    assert shapes == {(144, 320)}
    pd.testing.assert_frame_equal(csv(world, "passes", "filled"), csv(world, "passes", "plain"), atol=1e-3, rtol=1e-3)
    pd.testing.assert_frame_equal(csv(world, "history", "filled"), csv(world, "history", "plain"), atol=1e-3)


@pytest.mark.parametrize("windows", ["prefixes", "all"])
def test_every_rule_of_windows_scores_every_target(world: TinyWorld, windows: str) -> None:
    world.train(skipping(train={"windows": windows, "max_windows": 3000}))
    scores_NL = load_file(world.folder / "run" / "reports" / "skipped" / "store.safetensors")["scores"]
    expected = len(Epochs(world.splits, "prefixes", 42))
    assert (scores_NL[:, 0] >= 0).sum() == expected


@pytest.mark.parametrize("name", ["decoder", "hstu", "sasrec"])
@pytest.mark.parametrize("targets", ["last", "all"])
def test_causal_backbones_score_every_target(world: TinyWorld, name: str, targets: str) -> None:
    whole = targets == "all"
    settings = {
        "backbone": {"name": name, "dropout": 0.0},
        "train": {
            **SMALL,
            "targets": targets,
            "windows": "sequences" if whole else "random_start",
            "max_windows": 600 if whole else 1900,
        },
    }
    skipgr = {**MUCH, "apply_to": "loss"}
    world.train(make_params(**settings), "full")
    world.train(make_params(strategy="skipgr", skipgr=skipgr, **settings), "skipgr")
    scores_NL = load_file(world.folder / "skipgr" / "reports" / "skipped" / "store.safetensors")["scores"]
    assert (scores_NL[:, 0] >= 0).sum() == len(Epochs(world.splits, "prefixes", 42))
    epochs = csv(world, "passes", "skipgr")
    assert epochs["tokens_skipped"].iloc[1:].to_numpy() == pytest.approx(0.3, abs=0.002)
    assert epochs["target_tokens"].iloc[1] < 0.8 * epochs["target_tokens"].iloc[0]
    assert timings(world, "skipgr")["windows_trained"] < 0.9 * timings(world, "full")["windows_trained"]


def test_rastp_and_skipgr_train_together_and_the_model_is_rebuilt(world: TinyWorld) -> None:
    params = make_params(
        strategy="skipgr+rastp",
        backbone={"encoder_layers": 2},
        train=SMALL,
        skipgr={**MUCH, "input_unit": "item"},
        rastp={"after_layer": 1},
    )
    world.train(params)
    written = timings(world)
    assert written["tokens_per_step_after_pruning"] < 0.7 * written["tokens_per_step"]
    assert csv(world, "passes")["tokens_skipped"].max() > 0.2
    loaded = load_generator(world.folder / "run" / "generator")
    assert loaded.model.pruner is not None
    assert loaded.config["strategy"] == "skipgr+rastp"


@pytest.mark.slow
def test_two_processes_skip_the_same_as_one(world: TinyWorld, root: Path) -> None:
    train = {**SMALL, "windows": "all", "optimizer": "adam", "max_windows": 2600, "learning_rate": 1e-4}
    settings = {"strategy": "skipgr", "skipgr": MUCH, "train": train, "backbone": {"dropout": 0.0}}
    train_by_torchrun(world, root, **settings)
    world.train(make_params(**settings), "one")
    one, two = (pd.read_csv(folder / "reports" / "passes.csv") for folder in (world.folder / "one", world.folder))
    pd.testing.assert_frame_equal(two, one, rtol=1e-3, atol=1e-3)
    stores = [
        load_file(folder / "reports" / "skipped" / "store.safetensors")["scores"]
        for folder in (world.folder / "one", world.folder)
    ]
    np.testing.assert_allclose(stores[0], stores[1], atol=1e-3)
    weights = [
        torch.from_numpy(load_file(folder / "model.safetensors")["tokens.weight"])
        for folder in (world.folder / "one" / "generator", world.folder / "models" / "generator")
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-3)
