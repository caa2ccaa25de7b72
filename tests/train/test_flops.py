"""Counted arithmetic is the arithmetic written out by hand, per window, for every strategy that changes it."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import TinyWorld, make_params

from pipeline.machine import peak_flops
from pipeline.training.flops import flops_per_window
from pipeline.training.names import ItemNames
from pipeline.training.recipe import TrainingRecipe
from pipeline.training.windows import Epochs

BACKBONE: dict[str, Any] = {
    "encoder_layers": 3,
    "decoder_layers": 2,
    "d_model": 24,
    "heads": 2,
    "d_head": 16,
    "d_ff": 40,
    "ff_hidden_layers": 2,
    "separators": True,
}


def counted(world: TinyWorld, strategy: str, **sections: Any) -> tuple[float, np.ndarray]:
    """(FLOPs per window; items of the windows)."""
    settings = {"rastp": {"keep": 0.5, "after_layer": 1, "min_tokens": 1}, "skipgr": {}, "intrr": {"digit_width": 0}}
    params = make_params(strategy=strategy, **{"backbone": BACKBONE, **settings, **sections})
    windows = Epochs(world.splits, "random_start", 0).take(0, 0, 30)
    recipe = TrainingRecipe.of(params, world.splits, world.sids)
    return flops_per_window(recipe, world.splits, ItemNames(sids=world.sids).catalogue(), windows), windows.lengths_W


def test_a_step_of_full_costs_three_times_the_products_of_its_forward_pass(world: TinyWorld) -> None:
    (flops, items_W), widths = counted(world, "full"), world.sids.widths
    d, inner, levels, tokens_W = 24, 2 * 16, 3, 4 * items_W
    ff = d * 40 + 40 * 40 + 40 * d
    encoder = 3 * (tokens_W * (d * 3 * inner + inner * d + ff) + 2 * tokens_W**2 * inner)
    itself = levels * (d * 3 * inner + inner * d) + 2 * levels**2 * inner
    history = levels * 2 * d * inner + tokens_W * d * 2 * inner + 2 * levels * tokens_W * inner
    decoder = 2 * (itself + history + levels * ff)
    heads = d * sum(widths)
    assert flops == pytest.approx(3 * np.mean(2 * (encoder + decoder + heads)), rel=1e-9)


def test_pruned_tokens_are_not_counted(world: TinyWorld) -> None:
    assert counted(world, "rastp")[0] < 0.85 * counted(world, "full")[0]


@pytest.mark.parametrize("strategy", ["full", "intrr"])
@pytest.mark.parametrize("name", ["decoder", "hstu"])
def test_every_backbone_is_counted_and_more_targets_cost_more(world: TinyWorld, name: str, strategy: str) -> None:
    backbone = {**BACKBONE, "name": name, "separators": False}
    one, every = (
        counted(world, strategy, backbone=backbone, train={"targets": targets})[0] for targets in ("last", "all")
    )
    assert 0 < one < every


def test_a_sample_of_windows_says_what_all_say_unless_they_share_items(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    (every, items_W), shared = counted(world, "full"), counted(world, "intrr")[0]
    monkeypatch.setattr("pipeline.training.flops.SQUARES", int((items_W[:20] ** 2).sum()))
    sample = counted(world, "full")[0]
    assert every != sample == pytest.approx(every, rel=0.2)
    assert counted(world, "intrr")[0] == shared


def test_skipping_in_training_alone_is_not_seen(world: TinyWorld) -> None:
    assert counted(world, "skipgr")[0] == counted(world, "full")[0]


def test_a_run_says_its_flops_and_on_a_cpu_no_share_of_a_peak(world: TinyWorld) -> None:
    timings = world.train(make_params(train={"max_windows": 200}))
    assert timings["flops_per_second"] == pytest.approx(timings["flops_per_window"] * timings["windows_per_second"])
    assert peak_flops(torch.device("cpu")) is None
    assert "share_of_peak" not in timings
