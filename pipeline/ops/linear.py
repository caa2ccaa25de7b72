"""Apply T5's norm, and a linear layer fused with what surrounds it: norm, ReLU, dropout, residual.

Shape legend: T positions of all sequences, d model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ops.dropout import Dropout, ReluDropout
from pipeline.ops.layout import uses_kernels


class RMSNorm(nn.Module):
    """`RMSNorm` is T5's layer norm: it divides by the root mean square, without mean or bias."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, h_Td: Tensor) -> Tensor:
        return F.rms_norm(h_Td, self.weight.shape, self.weight, 1e-6)


def linear(
    layer: nn.Linear,
    x_Td: Tensor,
    then: Dropout | ReluDropout | None = None,
    *,
    norm: RMSNorm | None = None,
    residual_Td: Tensor | None = None,
) -> Tensor:
    """Compute residual + then(layer(norm(x))), each part where given; in one kernel where a GPU only infers."""
    if uses_kernels(x_Td.device) and not layer.training and not torch.is_grad_enabled():
        from pipeline.ops.triton import decoding

        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else layer.weight.dtype
        return decoding.linear(
            x_Td,
            layer.weight,
            dtype,
            norm_d=None if norm is None else norm.weight,
            relu=isinstance(then, ReluDropout),
            residual_Rn=residual_Td,
        )
    x_Td = layer(x_Td if norm is None else norm(x_Td))
    x_Td = x_Td if then is None else then(x_Td)
    return x_Td if residual_Td is None else residual_Td + x_Td
