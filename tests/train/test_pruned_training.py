"""rastp through the whole of training: what is written, resumed, rebuilt and counted."""

import json
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_world import TinyWorld, interrupt, make_params

from pipeline.decoding.ranking import histories_of, rank_targets
from pipeline.generator import load_generator
from pipeline.packing.histories import Histories
from pipeline.strategies.rastp.config import RastpConfig

SMALL: dict[str, Any] = {
    "backbone": {"encoder_layers": 2, "dropout": 0.1},
    "train": {"max_windows": 500, "checkpoint_every": 4},
}
RELEASED: dict[str, Any] = {
    "min_tokens": 1,
    "separators": "compete",
    "base": "padded",
    "keep_positions": False,
    "padded_queries": "count",
    "score_dropout": "after",
}


def pruned(padded: bool = False, strategy: str = "rastp", **rastp: Any) -> Any:
    train = {**SMALL["train"], **({"batching": "padded"} if padded else {})}
    return make_params(strategy=strategy, backbone=SMALL["backbone"], train=train, rastp={"after_layer": 1, **rastp})


def timings(world: TinyWorld, name: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((world.folder / name / "reports" / "timings.json").read_text())
    return found


def csv(world: TinyWorld, name: str, file: str) -> pd.DataFrame:
    return pd.read_csv(world.folder / name / "reports" / f"{file}.csv")


@pytest.mark.parametrize("options", [{}, {"score": "random", "unit": "item"}], ids=["rastp", "random"])
def test_a_stopped_run_ends_with_the_same_bytes(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    params = pruned(**options)
    world.train(params, "straight")

    interrupt(world, params, 6, monkeypatch, "stopped")
    world.train(params, "stopped")
    assert world.written("stopped") == world.written("straight")
    counts = ("tokens_per_step", "tokens_per_step_after_pruning", "keep_rate")
    assert [timings(world, "stopped")[key] for key in counts] == [timings(world, "straight")[key] for key in counts]


@pytest.mark.parametrize(("padded", "options"), [(False, {"keep": 0.5}), (True, RELEASED)], ids=["packed", "released"])
def test_the_saved_model_prunes_as_the_trained_one_did(world: TinyWorld, padded: bool, options: dict[str, Any]) -> None:
    params = pruned(padded, **options)
    world.train(params)
    loaded = load_generator(world.folder / "run" / "generator")
    assert RastpConfig(**loaded.config["rastp"]) == params.strategies["rastp"]
    assert loaded.config["pad_to"] == (24 if padded else 0)
    ranking = rank_targets(loaded.model, loaded.catalogue, world.splits, "valid", beam=10)
    history = csv(world, "run", "history")
    best = history[history["step"] == timings(world, "run")["best_step"]]
    assert (ranking.ranks_U > 0).mean() == pytest.approx(float(best["recall_at_10"].iloc[0]))


def test_what_is_kept_is_counted_by_level_and_by_age_of_the_item(world: TinyWorld) -> None:
    world.train(pruned())
    loaded = load_generator(world.folder / "run" / "generator")
    items, offsets = histories_of(world.splits, world.splits.targets("valid")[1])
    used = offsets[1:] > offsets[:-1]
    assert used.all()
    histories = Histories.pack(items, offsets)
    kept_NS = loaded.model.kept_tokens(histories)
    by_level = csv(world, "run", "kept_by_level")
    assert by_level["level"].tolist() == ["level 1", "level 2", "level 3", "separator"]
    assert by_level["kept"].tolist() == pytest.approx(kept_NS.double().mean(0).tolist(), abs=1e-6)
    age = torch.cat([torch.arange(length - 1, -1, -1) for length in histories.lengths_W.tolist()])
    by_position = csv(world, "run", "kept_by_position")
    assert by_position["kept"].tolist() == pytest.approx(
        [kept_NS[age == ago].double().mean().item() for ago in by_position["items_ago"]], abs=1e-6
    )
    written = timings(world, "run")
    assert written["keep_rate"] == pytest.approx(kept_NS.double().mean().item())
    assert 0.2 < written["tokens_per_step_after_pruning"] / written["tokens_per_step"] < 0.9
    assert min(written["encode_seconds_before_pruning"], written["encode_seconds_after_pruning"]) > 0


def test_full_keeps_everything(world: TinyWorld) -> None:
    world.train(pruned(strategy="full"))
    for file in ("kept_by_level", "kept_by_position"):
        assert set(csv(world, "run", file)["kept"]) == {1.0}
    written = timings(world, "run")
    assert written["keep_rate"] == 1
    assert written["tokens_per_step_after_pruning"] == written["tokens_per_step"]
    assert "rastp" not in json.loads((world.folder / "run" / "generator" / "config.json").read_text())


def test_keep_1_trains_as_full_does(world: TinyWorld) -> None:
    world.train(pruned(strategy="full"), "full")
    world.train(pruned(keep=1.0), "kept")
    assert world.written("kept")["model.safetensors"] == world.written("full")["model.safetensors"]
    assert world.written("kept")["history.csv"] == world.written("full")["history.csv"]


def test_pruning_in_training_only_is_still_told(world: TinyWorld) -> None:
    world.train(pruned(at_eval=False))
    assert timings(world, "run")["keep_rate"] < 0.7
