"""T5's norm, and a linear layer with what stands before and behind it: norm, ReLU, dropout, residual.

Shape legend: T positions of all sequences, d model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ops.dropout import Dropout, ReluDropout
from pipeline.ops.layout import uses_kernels


class RMSNorm(nn.Module):
    """T5's layer norm: scaled by the root mean square, no mean, no bias."""

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
    """residual + then(layer(norm(x))), each where given; one kernel where a GPU only reads the model."""
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
