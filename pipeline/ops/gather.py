"""Rows of a packed axis that are taken at most once each, with a gradient that sorts and adds nothing.

The gradient of plain indexing may add many rows to one, so it sorts the indices first. Where a row is taken once or not
at all, its gradient is a row too: that of the place which took it.
"""

from typing import Any, cast

import torch
from torch import Tensor


def gather_unique(x_Td: Tensor, source_O: Tensor, slot_T: Tensor) -> Tensor:
    """`x_Td[source_O]`, [O, d].

    Args:
        source_O: int64, the row that each place takes. What several places take has the gradient of one of them alone,
            that which `slot_T` names: the others are there for the shape only.
        slot_T: int64, the place that took each row; -1: none did.
    """
    return cast(Tensor, _GatherUnique.apply(x_Td, source_O, slot_T))


class _GatherUnique(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_Td: Tensor, source_O: Tensor, slot_T: Tensor) -> Tensor:
        ctx.save_for_backward(slot_T)
        return x_Td[source_O]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slot_T,) = ctx.saved_tensors
        return grads[0][slot_T.clamp(min=0)].masked_fill_((slot_T < 0)[:, None], 0.0), None, None
