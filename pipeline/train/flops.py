"""How much of the chip's arithmetic training uses: matrix products counted, not estimated from a model's size.

Counted are the products of one forward pass over windows of the first step, by the plain path on the CPU, two for a
multiply-add; training takes three times that, a backward pass having two products for each. In evaluation mode and with
nothing skipped: what a sampler such as skipgr's leaves out in training is not seen here.
"""

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.artifacts import Sids, Splits
from pipeline.catalogue import Catalogue
from pipeline.strategies.base import Sampler, Strategy
from pipeline.train.recipe import TrainingRecipe
from pipeline.training.steps import Step
from pipeline.training.windows import Windows

WINDOWS, SQUARES = 256, 256 * 32**2  # a sample of a step: windows, and sum of their squared lengths, for memory's sake


@torch.no_grad()
def flops_per_window(recipe: TrainingRecipe, splits: Splits, sids: Sids, windows: Windows) -> float:
    """Floating-point operations of training on one window, forward and backward.

    Args:
        windows: of one step. Where windows share nothing, a sample of them is enough; `intrr` computes what they share,
            their distinct items, once for all.
    """
    catalogue, network = Catalogue(sids.codes_IL, sids.widths, sids.digit), recipe.chosen.network(recipe.pad_to)
    with torch.random.fork_rng(devices=[]):
        model = network.build(recipe.backbone, catalogue).eval()
    if network.items == "unlisted":
        fitting = int((np.cumsum(windows.lengths_W**2) <= SQUARES).sum())
        windows = windows[: max(1, min(fitting, WINDOWS))]
    collate = recipe.collator(splits, catalogue.codes_IL, network)
    step = Step(0, len(windows), windows, np.ones(len(windows), np.float32))
    batch = collate(step, np.arange(len(windows)), item_counts=collate.count_items(step))
    with FlopCounterMode(display=False) as counter:
        Strategy(network, Sampler()).loss(model, batch)
    return 3 * counter.get_total_flops() / len(windows)
