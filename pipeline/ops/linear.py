"""Apply T5's norm; a linear layer fused with what surrounds it: norm, ReLU, dropout, residual; and a feed-forward.

Shape legend: T positions of all sequences, d model width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ops.dropout import Dropout, ReluDropout
from pipeline.ops.layout import uses_kernels

WHOLE = 8  # a row of so many numbers of 2 bytes is 16 bytes, which kernels and products take fastest


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


def aligned_width(width: int) -> int:
    """Return the least width that is not below `width` and has rows of whole 16 bytes in a type of 2 bytes."""
    return -(-width // WHOLE) * WHOLE


def padded_linear(x_Td: Tensor, weight_nd: Tensor, bias_n: Tensor | None = None, *, part: int = 0) -> Tensor:
    """Compute a linear layer in products of aligned rows.

    A product whose rows are no whole 16 bytes takes several times as long on a GPU. The bias is the weight of a column
    of ones: its gradient is then part of a product too, and not a sum over T rows.

    Args:
        part: each `part` columns of the output get zeros behind them, up to whole 16 bytes; 0: the output has none.

    Returns:
        [T, n / part * aligned_width(part)], or [T, n].
    """
    if bias_n is not None:
        x_Td, weight_nd = F.pad(x_Td, (0, 1), value=1.0), torch.cat([weight_nd, bias_n[:, None]], 1)
    width = x_Td.shape[1]
    if more := aligned_width(width) - width:  # a pad of 0 columns would copy
        x_Td, weight_nd = F.pad(x_Td, (0, more)), F.pad(weight_nd, (0, more))
    if part and (behind := aligned_width(part) - part):
        weight_nd = F.pad(torch.unflatten(weight_nd, 0, (-1, part)), (0, 0, 0, behind)).flatten(0, 1)
    return F.linear(x_Td, weight_nd)


def feed_forward(
    layers: Sequence[nn.Linear], h_Td: Tensor, relu: ReluDropout, then: Dropout, *, norm: RMSNorm
) -> Tensor:
    """Compute h + then(last layer(...relu(first layer(norm(h)))...)): T5's feed-forward with its norm and residual.

    Where a GPU trains in bfloat16, ReLU, dropout and their gradients are computed inside the products.
    """
    *hidden, last = layers
    if _fuses(layers, h_Td):
        from pipeline.ops.triton.feed_forward import relu_layers

        x_Td = norm(h_Td).to(torch.bfloat16)
        weights = [layer.weight.to(torch.bfloat16) for layer in layers]
        out_Td: Tensor = then(relu_layers(x_Td.contiguous(), weights, relu.p))
        return h_Td + out_Td
    x_Td = h_Td
    for i, layer in enumerate(hidden):
        x_Td = linear(layer, x_Td, relu, norm=None if i else norm)
    return linear(last, x_Td, then, residual_Td=h_Td)


def _fuses(layers: Sequence[nn.Linear], h_Td: Tensor) -> bool:
    """Tell whether the kernels of a feed-forward can take these layers now."""
    if not (uses_kernels(h_Td.device) and layers[0].training and torch.is_grad_enabled()):
        return False
    low = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
    widths = (size for layer in layers for size in layer.weight.shape)
    return low and all(width % WHOLE == 0 for width in widths)
