"""How much of the chip's arithmetic training uses: matrix products counted, not estimated from a model's size.

Counted are the products of one forward pass over the first step's windows, as they run uncompiled and unfilled, two for
a multiply-add; training takes three times that, a backward pass having two products for each. In evaluation mode, so
that a strategy counts as it evaluates: of tokens that `skipgr` skips in training alone, nothing is seen here.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from pipeline.strategies.base import Batch, Strategy

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # FLOP/s of dense bfloat16, by a part of the GPU's name


@torch.no_grad()
def flops_per_window(model: nn.Module, strategy: "Strategy", batch: "Batch") -> float:
    """Of training: forward and backward. The model is left in evaluation mode."""
    model.eval()
    with FlopCounterMode(display=False) as counter:
        strategy.loss(model, batch)
    return 3 * counter.get_total_flops() / batch.histories.windows


def peak(device: torch.device) -> float | None:
    """FLOP/s of dense bfloat16 at most; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAKS.items() if part in name), None)
