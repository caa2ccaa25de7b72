"""Apply dropout without letting it dominate training.

torch draws one number per element. On a CPU that takes a quarter of the time of a small model's step: here four
elements share one draw of 64 bits, so that the rate is a multiple of 1/65536, and the elements that remain are scaled
by exactly that rate. In a model compiled for a GPU a draw takes longer than moving the element: there the mask is a
hash of (seed, index), fused into what computes the element. The numbers come from torch's global generator: seeding it
repeats them.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 2**16  # values of a quarter of a 64-bit draw


def dropout_factors(shape: torch.Size, p: float, like: Tensor) -> Tensor:
    """Draw factors: 0 with probability p, else 1 / (1 - p); on the device and in the type of `like`."""
    if not _on_cpu(like):
        return like.new_empty(shape).bernoulli_(1 - p).div_(1 - p)
    size = math.prod(shape)
    dropped = _dropped(p)
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    remains = bits.view(torch.int16)[:size].view(shape) >= dropped - STEPS // 2  # int16 begins at -STEPS / 2
    return remains.to(like.dtype).mul_(STEPS / (STEPS - dropped))


def _dropped(p: float) -> int:
    """Return how many of the 65,536 values of a 16-bit number mean a dropped element; one remains, as p is below 1."""
    return min(round(p * STEPS), STEPS - 1)


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def hashed_mask(shape: torch.Size, p: float, device: torch.device) -> Tensor:
    """Return True with probability 1 - p, by a hash of each element's index and a drawn seed; for compiled code.

    The hash is computed in wrapping int32, as in the attention kernels.
    """
    # The seed is mixed in first: in a product of indices alone the compiler would multiply out the constants, and they
    # would exceed int32.
    x = torch.arange(math.prod(shape), device=device, dtype=torch.int32)
    x = x ^ torch.randint(2**31 - 1, (1,), device=device, dtype=torch.int32)
    for factor in (0x7FEB352D, 0x2C1B3C6D):
        x = (x ^ ((x >> 15) & 0x1FFFF)) * factor  # the mask makes the shift a logical one
    return (x >= int(p * 2**32) - 2**31).view(shape)


class Dropout(nn.Module):
    """`Dropout` does the same as `nn.Dropout`, faster."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if _on_cpu(x):
            return x * dropout_factors(x.shape, self.p, x)
        if not torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        return torch.where(hashed_mask(x.shape, self.p, x.device), x * (1 / (1 - self.p)), 0)


class ReluDropout(Dropout):
    """`ReluDropout` applies ReLU, then dropout, with one walk over the data and one saved tensor instead of two."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or not _on_cpu(x):
            return super().forward(F.relu(x))
        y: Tensor = _ReluDropout.apply(x, self.p)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
        return y


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        factors = dropout_factors(x.shape, p, x)
        y = factors.mul_(x).clamp_(min=0)
        ctx.save_for_backward(y)
        ctx.scale = STEPS / (STEPS - _dropped(p))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors  # positive exactly where x was positive and not dropped
        return torch.ops.aten.threshold_backward(grads[0], y, 0).mul_(ctx.scale), None
