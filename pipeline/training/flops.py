"""Count the arithmetic of training: its matrix products, not an estimate from a model's size.

The products of one forward pass over windows of the first step are counted on the CPU, without kernels; a multiply-add
is two operations. Training takes three times as many, since the backward pass has two products for each. The model is
in evaluation mode and nothing is skipped, so that the count does not show what a sampler such as skipgr's leaves out.

Shape legend: W windows.
"""

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.artifacts import Splits
from pipeline.catalogue import Catalogue
from pipeline.strategies.base import Sampler, Strategy
from pipeline.training.recipe import TrainingRecipe
from pipeline.training.steps import Step
from pipeline.training.windows import Windows

# Bounds of a sample of a step, for memory's sake: its windows, and the sum of their squared lengths.
WINDOWS = 256
SQUARES = 256 * 32**2
LOGITS = 2**26  # over items: of all positions together


@torch.no_grad()
def flops_per_window(recipe: TrainingRecipe, splits: Splits, catalogue: Catalogue, windows: Windows) -> float:
    """Return the floating-point operations of training on one window, forward and backward.

    Args:
        catalogue: on the CPU.
        windows: the windows of one step. A sample of them is enough where windows share nothing; under `intrr` all are
            taken, since windows share their distinct items, which are computed once. A network over items computes the
            vectors of all items once per step: as many windows are taken as memory allows.
    """
    network = recipe.network()
    with torch.random.fork_rng(devices=[]):
        model = network.build(recipe.backbone, catalogue).eval()
    if recipe.backbone.over_items:
        fitting = int((np.cumsum(windows.lengths_W) * catalogue.items <= LOGITS).sum())
        windows = windows[: max(1, fitting)]
    elif network.items == "unlisted":
        fitting = int((np.cumsum(windows.lengths_W**2) <= SQUARES).sum())
        windows = windows[: max(1, min(fitting, WINDOWS))]
    collate = recipe.collator(splits, catalogue.codes_IL, network)
    step = Step(0, len(windows), windows, np.ones(len(windows), np.float32))
    batch = collate(step, np.arange(len(windows)), item_counts=collate.count_items(step))
    with FlopCounterMode(display=False) as counter:
        Strategy(network, Sampler()).loss(model, batch)
    forward: int = counter.get_total_flops()
    return 3 * forward / len(windows)
