"""How much of the chip's arithmetic training uses: matrix products counted, not estimated from a model's size.

Counted are the products of one forward pass over windows of the first step, by the plain path on the CPU, two for a
multiply-add; training takes three times that, a backward pass having two products for each. In evaluation mode, so that
a strategy counts as it evaluates: of what `skipgr` skips in training alone, nothing is seen here.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.catalogue import Catalogue
from pipeline.strategies import build_strategy
from pipeline.training.collate import Listed, collate
from pipeline.training.steps import Step

if TYPE_CHECKING:
    from pipeline.artifacts import Sids, Splits
    from pipeline.config import Params
    from pipeline.training.windows import Windows

WINDOWS, SQUARES = 256, 256 * 32**2  # a sample of a step: windows, and sum of their squared lengths, for memory's sake


@torch.no_grad()
def flops_per_window(
    params: "Params", sections: dict[str, Any], splits: "Splits", sids: "Sids", windows: "Windows", pad_to: int = 0
) -> float:
    """Of training, forward and backward.

    Args:
        sections: settings of the strategies, as for `build_strategy`.
        windows: of one step. Where windows share nothing, a sample of them is enough; `intrr` computes what they share,
            their distinct items, once for all.
        pad_to: encoder positions of every window of a padded run, 0 for packed.
    """
    catalogue, items_N = Catalogue(sids.codes_IL, sids.widths, sids.digit), np.asarray(splits.items_N)
    strategy = build_strategy(params.strategy, sections, pad_to)
    with torch.random.fork_rng(devices=[]):
        model = strategy.build_model(params.backbone, catalogue).eval()
    if strategy.items == "unlisted":
        fitting = int((np.cumsum(windows.lengths_W**2) <= SQUARES).sum())
        windows = windows[: max(1, min(fitting, WINDOWS))]
    step = Step(0, len(windows), windows, np.ones(len(windows), np.float32))
    listed = (
        None if strategy.items == "unlisted" else Listed(items_N, step, strategy.items, len(windows), catalogue.items)
    )
    times_N = np.asarray(splits.timestamps_N) if params.backbone.wants_times else None
    batch = collate(
        items_N,
        step,
        np.arange(len(windows)),
        catalogue.codes_IL,
        pad_to,
        splits.max_history,
        None,
        times_N,
        params.train.targets == "all",
        listed,
    )
    with FlopCounterMode(display=False) as counter:
        strategy.loss(model, batch)
    return 3 * counter.get_total_flops() / len(windows)
