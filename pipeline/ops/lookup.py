"""Look up rows of a table, such as the vectors of tokens or items.

Shape legend: V rows of the table, d width of a row.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.ops.layout import uses_kernels

LARGEST = 2048  # rows of a table whose gradient is summed without sorting; the work grows with them


def take_rows(table_Vd: Tensor, index: Tensor) -> Tensor:
    """Return the rows of the table at `index`, [..., d]; a GPU sums the table's gradient in kernels of its own.

    Args:
        index: int64 of any shape.
    """
    in_kernels = uses_kernels(index.device) and torch.is_grad_enabled()
    if in_kernels and table_Vd.dtype == torch.float32:  # the kernels sum in float32
        rows: Tensor = _Rows.apply(table_Vd, index)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
        return rows
    return nn.functional.embedding(index, table_Vd)


class LookupTable(nn.Embedding):
    """`LookupTable` does what `nn.Embedding` does, by `take_rows`."""

    def forward(self, index: Tensor) -> Tensor:
        return take_rows(self.weight, index)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_Vd: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(weight_Vd)
        return nn.functional.embedding(index, weight_Vd)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        from pipeline.ops.triton.lookup_kernel import sorted_table_gradient, table_gradient

        (index,) = ctx.saved_tensors
        gradient = table_gradient if ctx.rows <= LARGEST else sorted_table_gradient
        gradient_Xd = grads[0].reshape(-1, grads[0].shape[-1]).contiguous()
        return gradient(gradient_Xd, index.flatten().contiguous(), ctx.rows), None
