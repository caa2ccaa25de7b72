"""What training computes: the loss, the update, and that batching, parts and parameters change no result."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_world import TinyWorld, make_params, make_splits

from pipeline.artifacts import Sids, write_parquet
from pipeline.backbones import build_backbone
from pipeline.catalogue import Catalogue
from pipeline.errors import UserError
from pipeline.generator import load_generator
from pipeline.packing.histories import Histories
from pipeline.training.recipe import TrainingRecipe
from pipeline.training.validation import Validation
from pipeline.training.windows import Epochs

STILL: dict[str, Any] = {"dropout": 0.0}  # different layouts draw different dropout


def history(world: TinyWorld, name: str = "run") -> pd.DataFrame:
    return pd.read_csv(world.folder / name / "reports" / "history.csv")


def weights(world: TinyWorld, name: str = "run") -> dict[str, torch.Tensor]:
    return load_file(world.folder / name / "generator" / "model.safetensors")


def largest_difference(world: TinyWorld, first: str, second: str) -> float:
    a, b = weights(world, first), weights(world, second)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def slow_training(world: TinyWorld, params: Any, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final weights of plain torch: one window at a time, probabilities by hand, Adam without options."""
    torch.manual_seed(params.seed)
    splits, catalogue = world.splits, Catalogue(world.sids.codes_IL, world.sids.widths)
    model = build_backbone(params.backbone, catalogue)
    optimizer = torch.optim.Adam(model.parameters(), params.train.learning_rate)
    windows = Epochs(splits, params.train.windows, params.seed).take(0, 0, 10**9)
    losses, row = [], 0
    for _ in range(steps):
        tokens, loss, count = 0, torch.zeros(()), 0
        while tokens + (length := int(windows.lengths_W[row])) * 4 <= params.train.batch_tokens:
            items = splits.items_N[windows.starts_W[row] : windows.ends_W[row]]
            target = int(splits.items_N[windows.ends_W[row]])
            logits = model(Histories.pack(items, np.array([0, len(items)])), torch.tensor([target]))
            for level, logits_1V in enumerate(logits):
                loss = loss - torch.log(torch.softmax(logits_1V[0], 0)[world.sids.codes_IL[target, level]])
            tokens, row, count = tokens + length * 4, row + 1, count + 1
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(loss.item() / count)
    return losses, model.state_dict()


def test_losses_and_weights_equal_a_slow_reference(world: TinyWorld) -> None:
    params = make_params(
        backbone=STILL,
        train={
            "optimizer": "adam",
            "weight_decay": 0.0,
            "validate_every": 1,
            "batch_tokens": 120,
            "max_windows": 40,
            "select": "loss",
        },
    )
    world.train(params)
    steps = len(history(world))
    losses, reference = slow_training(world, params, steps)
    assert steps >= 3
    assert history(world)["train_loss"].to_list() == pytest.approx(losses, abs=2e-5)
    assert history(world)["valid_loss"].is_monotonic_decreasing  # so the last weights are the ones saved
    assert all(torch.allclose(value, reference[name], atol=1e-5) for name, value in weights(world).items())


def test_the_loss_starts_at_a_uniform_guess_and_goes_down(world: TinyWorld) -> None:
    world.train(make_params(train={"max_windows": 3000, "learning_rate": 0.01}))
    losses = history(world)["train_loss"]
    assert losses.iloc[0] < 1.3 * sum(math.log(width) for width in world.sids.widths)
    assert losses.iloc[-1] < 0.75 * losses.iloc[0]


def test_padded_training_equals_packed_training(world: TinyWorld) -> None:
    changes: dict[str, dict[str, Any]] = {
        "packed": {},
        "padded": {"batching": "padded"},
        "wide": {"batching": "padded", "pad_to": 40},
    }
    for name, train in changes.items():
        world.train(make_params(backbone=STILL, train={"max_windows": 400, **train}), name)
    assert largest_difference(world, "packed", "padded") < 1e-5
    assert largest_difference(world, "packed", "wide") < 1e-5
    assert history(world, "padded")["train_loss"].to_numpy() == pytest.approx(
        history(world, "packed")["train_loss"], abs=1e-5
    )


def test_the_number_of_parts_changes_nothing(world: TinyWorld) -> None:
    for name, parts in {"whole": 1, "thirds": 3, "single": 30}.items():  # 30: more parts than windows
        world.train(
            make_params(backbone=STILL, train={"max_windows": 150, "batch_tokens": 200, "accumulate": parts}), name
        )
    assert largest_difference(world, "whole", "thirds") < 1e-6
    assert largest_difference(world, "whole", "single") < 1e-6


def test_the_real_token_share_tells_what_padding_wastes(world: TinyWorld) -> None:
    packed = world.train(make_params(), "packed")
    padded = world.train(make_params(train={"batching": "padded", "pad_to": 48}), "padded")
    assert packed["real_token_share"] == 1.0
    assert padded["real_token_share"] == pytest.approx(packed["tokens_trained"] / (packed["windows_trained"] * 48))
    assert padded["windows_trained"] == packed["windows_trained"]


def test_a_second_run_writes_the_same_bytes(world: TinyWorld) -> None:
    world.train(make_params(train={"ema": 0.9}), "first")
    world.train(make_params(train={"ema": 0.9}), "second")
    world.train(make_params(seed=1, train={"ema": 0.9}), "other")
    assert world.written("first") == world.written("second")
    assert world.written("first") != world.written("other")


def with_other_items(world: TinyWorld, tmp_path: Path, positions: np.ndarray) -> TinyWorld:
    """The same world in a new folder, with every item at these positions replaced."""
    items_N = np.array(world.splits.items_N)
    items_N[positions] = (items_N[positions] + 17) % 40
    changed = replace(world.splits, items_N=items_N)
    folder = tmp_path / "changed"
    changed.write(folder / "splits")
    for name in ("sids", "interactions"):
        (folder / name).symlink_to(world.folder / name)
    return TinyWorld(folder, changed, world.sids)


def test_test_items_influence_nothing_at_all(world: TinyWorld, tmp_path: Path) -> None:
    changed = with_other_items(world, tmp_path, world.splits.targets("test")[1])
    world.train(make_params())
    changed.train(make_params())
    for name in ("model.safetensors", "history.csv"):
        assert world.written()[name] == changed.written()[name]


def test_validation_items_influence_no_training_step(world: TinyWorld, tmp_path: Path) -> None:
    changed = with_other_items(world, tmp_path, world.splits.targets("valid")[1])
    world.train(make_params())
    changed.train(make_params())
    assert history(world)["train_loss"].equals(history(changed)["train_loss"])
    assert not history(world)["valid_loss"].equals(history(changed)["valid_loss"])


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Validation that gives these scores one after another."""
    rest = iter(scores)

    def measure(*_: Any) -> dict[str, float]:
        score = next(rest)
        return dict.fromkeys(("recall_at_5", "recall_at_10"), score) | {"valid_loss": score}

    monkeypatch.setattr(Validation, "measure", measure)


@pytest.mark.parametrize(
    ("select", "scores", "best"),
    [
        ("recall_at_10", [0.1, 0.3, 0.2, 0.3, 0.1], 2),  # an equal score is not a better one
        ("loss", [5.0, 4.0, 3.0, 3.5, 3.0, 4.0], 3),
    ],
)
def test_training_stops_when_patience_ends_and_keeps_the_best_weights(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, select: str, scores: list[float], best: int
) -> None:
    train = {"max_windows": 10**6, "validate_every": 3, "patience": 3, "select": select}
    scripted(monkeypatch, scores)
    timings = world.train(make_params(train=train), "stopped")
    assert timings["best_step"] == 3 * best
    assert history(world, "stopped")["step"].to_list() == [3 * (i + 1) for i in range(len(scores))]
    until_best = int(history(world, "stopped")["windows"][best - 1])
    scripted(monkeypatch, scores)
    world.train(make_params(train={**train, "max_windows": until_best}), "until_best")
    assert largest_difference(world, "stopped", "until_best") == 0


def test_training_ends_with_the_step_that_reaches_max_windows(world: TinyWorld) -> None:
    timings = world.train(make_params(train={"max_windows": 500, "validate_every": 1}))
    before_last = history(world)["windows"].iloc[-2]
    assert before_last < 500 <= timings["windows_trained"]


def test_a_diverging_loss_stops_with_the_step_and_what_to_try(world: TinyWorld) -> None:
    params = make_params()
    absurd = replace(params, train=replace(params.train, learning_rate=1e30))  # beyond what params.yaml may say
    with pytest.raises(UserError, match=r"not a finite number any more at step \d+") as error:
        world.train(absurd)
    assert "train.learning_rate" in error.value.fix
    assert not (world.folder / "run").exists()


def test_an_average_of_the_weights_is_what_is_saved(world: TinyWorld) -> None:
    world.train(make_params(), "raw")
    world.train(make_params(train={"ema": 0.99}), "averaged")
    assert largest_difference(world, "raw", "averaged") > 1e-4
    assert history(world, "raw")["train_loss"].equals(history(world, "averaged")["train_loss"])


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (make_params(train={"batch_tokens": 20}), "train.batch_tokens is 20, but one history may take 24"),
        (make_params(train={"batching": "padded", "pad_to": 23}), "train.pad_to is 23, but one history may take 24"),
    ],
)
def test_a_budget_below_one_history_is_refused(world: TinyWorld, params: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        world.train(params)


def test_sids_of_another_catalogue_are_refused(world: TinyWorld) -> None:
    splits = replace(world.splits, summary={**world.splits.summary, "items": 41})
    with pytest.raises(UserError, match="40 Semantic IDs for 41 items"):
        TrainingRecipe.of(make_params(), splits, world.sids)


@pytest.mark.parametrize(("lengths", "words"), [([1, 1], "nothing to train on"), ([2, 2], "no user has a validation")])
def test_a_log_too_short_to_learn_from_is_refused(
    world: TinyWorld, tmp_path: Path, lengths: list[int], words: str
) -> None:
    (tmp_path / "splits").unlink()
    make_splits(lengths, np.random.default_rng(0)).write(tmp_path / "splits")
    with pytest.raises(UserError, match=words):
        world.train(make_params())


def test_items_may_share_a_semantic_id(world: TinyWorld) -> None:
    (world.folder / "sids").unlink()
    pairs = Sids(world.sids.codes_IL[:, :2], world.sids.widths[:2], world.sids.codebooks, {}, digit=False)
    pairs.write(world.folder / "sids")
    world.train(make_params())
    loaded = load_generator(world.folder / "run" / "generator")
    assert loaded.catalogue.shares
    assert loaded.catalogue.prefixes[-1] == 20
    assert history(world)["recall_at_10"].iloc[-1] > 0


def test_items_of_another_log_are_refused_before_a_step(world: TinyWorld, tmp_path: Path) -> None:
    """By hand, `ingest` of another log and then `train` would train for nothing: the model could not be written."""
    shutil.copytree(world.folder, tmp_path / "mixed")
    mixed = TinyWorld(tmp_path / "mixed", world.splits, world.sids)
    file = mixed.folder / "interactions" / "items.parquet"
    write_parquet(file, pd.read_parquet(file).iloc[:-1])
    with pytest.raises(UserError, match=r"items.parquet lists 39 items, and 40 are to be trained"):
        mixed.train(make_params())
