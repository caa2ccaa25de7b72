"""Gather rows of a packed axis, each at most once, with a backward pass that is a gather too.

The gradient of plain indexing may add many rows to one, so it sorts the indices first. A row that is taken at most once
needs no sum: its gradient is the gradient of the slot that took it.

Shape legend: T tokens of the packed axis before, O slots of the axis after, d model width.
"""

from typing import Any

import torch
from torch import Tensor


def gather_unique(x_Td: Tensor, source_O: Tensor, slot_T: Tensor) -> Tensor:
    """Return `x_Td[source_O]`, [O, d].

    rows a b c, source 2 0 0, slot 1 -1 0 -> c a a; the gradient of a is that of slot 1, of b 0, of c that of slot 0

    Args:
        source_O: int64, the row that each slot takes. A row that several slots take has the gradient of one of them,
            the one that `slot_T` names: the other slots are there for the shape only.
        slot_T: int64, the slot that took each row; -1: none did.
    """
    taken_Od: Tensor = _GatherUnique.apply(x_Td, source_O, slot_T)  # type: ignore[no-untyped-call]  # torch's `apply`
    return taken_Od


class _GatherUnique(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_Td: Tensor, source_O: Tensor, slot_T: Tensor) -> Tensor:
        ctx.save_for_backward(slot_T)
        return x_Td[source_O]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slot_T,) = ctx.saved_tensors
        return grads[0][slot_T.clamp(min=0)].masked_fill_((slot_T < 0)[:, None], 0.0), None, None
