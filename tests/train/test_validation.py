"""Validation on a sample of users equals validation on a log in which no one else has a validation target."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_world import TinyWorld, interrupt, make_params, make_splits

from pipeline.artifacts import Splits
from pipeline.errors import UserError
from pipeline.hashing import hasher
from pipeline.training.validation import PURPOSE

RASTP: dict[str, Any] = {"strategy": "rastp", "rastp": {"after_layer": 1}, "backbone": {"encoder_layers": 2}}


def with_targets_of(world: TinyWorld, folder: Path, users: np.ndarray) -> TinyWorld:
    """The same world, in which only these users have a validation target."""
    chosen = np.isin(np.arange(world.splits.users), users)
    fewer = replace(world.splits, valid_target=np.where(chosen, world.splits.valid_target, -1))
    fewer.write(folder / "splits")
    for name in ("sids", "interactions"):
        (folder / name).symlink_to(world.folder / name)
    return TinyWorld(folder, Splits.read(folder / "splits"), world.sids)


def drawn(splits: Splits, most: int) -> np.ndarray:
    """The sample by its slow definition."""
    users = splits.targets("valid")[0]
    keys = [int(hasher(PURPOSE)(np.array([user], np.uint64))[0]) for user in users]
    return users[np.argsort(keys)[:most]]


@pytest.mark.parametrize("settings", [{}, RASTP, {"strategy": "skipgr", "seed": 5}])
def test_a_sample_gives_what_a_log_with_only_their_targets_gives(
    world: TinyWorld, tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"max_windows": 400}
    timings = world.train(make_params(train={**train, "valid_users": 17}, **settings))
    held = len(world.splits.targets("valid")[0])
    assert (timings["valid_users"], timings["valid_users_in_all"]) == (17, held)
    assert f"a sample of 17 of {held} users" in capsys.readouterr().out
    other = with_targets_of(world, tmp_path / "other", drawn(world.splits, 17))
    whole = other.train(make_params(train=train, **settings))
    assert "valid_users" not in whole
    for name in ("model.safetensors", "history.csv"):
        assert world.written()[name] == other.written()[name]
    kept = "reports/kept_by_level.csv"  # the survey is of the same users
    assert (world.folder / "run" / kept).read_bytes() == (other.folder / "run" / kept).read_bytes()
    assert timings["keep_rate"] == whole["keep_rate"]


def test_more_users_than_there_are_or_0_means_all(world: TinyWorld) -> None:
    train = {"max_windows": 200}
    for users in (50_000, 0):
        assert "valid_users" not in world.train(make_params(train={**train, "valid_users": users}), str(users))
    assert world.written("0")["history.csv"] == world.written("50000")["history.csv"]
    assert len(pd.read_csv(world.folder / "0" / "reports/history.csv")) > 0


def test_a_sample_without_any_history_says_so(world: TinyWorld, tmp_path: Path) -> None:
    splits = make_splits([9] * 8, np.random.default_rng(0))
    only = drawn(splits, 1)[0]
    target = splits.valid_target.copy()
    target[only] = splits.offsets[only]  # the user's first interaction, which nothing comes before
    (tmp_path / "splits").unlink()
    replace(splits, valid_target=target).write(tmp_path / "splits")
    with pytest.raises(UserError, match="none of the 1 users in the sample") as error:
        world.train(make_params(train={"valid_users": 1}))
    assert "8 users have a target" in error.value.fix


def steps(world: TinyWorld, name: str = "run") -> list[int]:
    return pd.read_csv(world.folder / name / "reports/history.csv")["step"].to_list()


AUTO: dict[str, Any] = {"train": {"validate_every": "auto", "max_windows": 4000, "valid_users": 20}}


def test_auto_is_a_tenth_of_the_positions_and_equal_after_a_stop(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timings = world.train(make_params(**AUTO), "undisturbed")
    assert "validation took" in capsys.readouterr().out
    found = steps(world, "undisturbed")
    splits = world.splits
    users = drawn(splits, 20)
    histories = np.minimum(splits.valid_target[users] - splits.offsets[users], splits.max_history).sum()
    one = 2 * histories * 4 + 20 * (3 + 1 + 2 * 10)  # 3 levels and a separator; beam 10
    trained = 3 * (timings["tokens_trained"] + timings["windows_trained"] * 3)
    assert len(found) - 1 == pytest.approx(trained / (9 * one), rel=0.15)  # each comes up to a step late
    assert len(found) >= 4
    for step in (found[0], found[1] - 1, found[2] + 3):
        interrupt(world, make_params(**AUTO), step, monkeypatch)
        world.train(make_params(**AUTO), str(step))
        assert world.written(str(step)) == world.written("undisturbed"), f"stopped after {step}"


def test_padding_counts_as_training(world: TinyWorld) -> None:
    world.train(make_params(**AUTO), "packed")
    padded = {"train": {**AUTO["train"], "batching": "padded", "pad_to": 96}}
    world.train(make_params(**padded), "padded")
    assert steps(world, "padded")[0] < steps(world, "packed")[0]


@pytest.mark.parametrize("value", [0, -1, 1.5, "sometimes", True, 10**10])
def test_other_values_are_refused_with_both_forms(value: Any) -> None:
    with pytest.raises(UserError, match=r"train\.validate_every is .*, expected .*'auto'.* whole number from 1 to"):
        make_params(train={"validate_every": value})
