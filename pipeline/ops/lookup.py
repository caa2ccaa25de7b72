"""`LookupTable` is a table of vectors that are looked up, such as those of tokens."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.ops.layout import uses_kernels

LARGEST = 2048  # rows of a table whose gradient the kernel sums; its work grows with them


class LookupTable(nn.Embedding):
    """`LookupTable` does what `nn.Embedding` does. A GPU sums the gradient of a small one without sorting."""

    def forward(self, index: Tensor) -> Tensor:
        small = len(self.weight) <= LARGEST and self.weight.dtype == torch.float32  # the kernel sums in float32
        if small and uses_kernels(index.device) and torch.is_grad_enabled():
            rows: Tensor = _Rows.apply(self.weight, index)  # type: ignore[no-untyped-call]  # torch's `apply`
            return rows
        return super().forward(index)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_Vd: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(weight_Vd)
        return nn.functional.embedding(index, weight_Vd)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        from pipeline.ops.triton.lookup_kernel import table_gradient

        (index,) = ctx.saved_tensors
        return table_gradient(grads[0].flatten(0, -2).contiguous(), index.flatten().contiguous(), ctx.rows), None
