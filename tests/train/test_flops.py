"""Counted arithmetic is the arithmetic written out by hand, per window, for every strategy that changes it."""

import numpy as np
import pytest
import torch
from tiny_world import TinyWorld, make_params

from pipeline.backbones.catalogue import Catalogue
from pipeline.backbones.config import BackboneConfig
from pipeline.strategies import build_strategy
from pipeline.train.batches import Step, collate
from pipeline.train.flops import flops_per_window, peak
from pipeline.train.windows import Passes

CONFIG = BackboneConfig(encoder_layers=3, decoder_layers=2, d_model=24, heads=2, d_head=16, d_ff=40,
                        ff_hidden_layers=2, separators=True)


def counted(world: TinyWorld, strategy: str) -> tuple[float, np.ndarray, tuple[int, ...]]:
    """(FLOPs per window of a batch; items of its windows; widths of the levels)."""
    catalogue = Catalogue(world.sids.codes_IL, world.sids.widths)
    chosen = build_strategy(strategy, {"rastp": {"keep": 0.5, "after_layer": 1, "min_tokens": 1}})
    windows = Passes(world.splits, "random_start", 0).take(0, 0, 30)
    step = Step(0, 30, windows, np.ones(30, np.float32))
    batch = collate(np.asarray(world.splits.items_N), step, np.arange(30), catalogue.codes_IL)
    return (flops_per_window(chosen.build_model(CONFIG, catalogue), chosen, batch), windows.lengths_W, catalogue.widths)


def test_a_step_of_full_costs_three_times_the_products_of_its_forward_pass(world: TinyWorld) -> None:
    flops, items_W, widths = counted(world, "full")
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


def test_a_run_says_its_flops_and_on_a_cpu_no_share_of_a_peak(world: TinyWorld) -> None:
    timings = world.train(make_params(train={"max_windows": 200}))
    assert timings["flops_per_second"] == pytest.approx(timings["flops_per_window"] * timings["windows_per_second"])
    assert peak(torch.device("cpu")) is None
    assert "share_of_peak" not in timings
