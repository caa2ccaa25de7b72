"""Choose what applies Adam: torch's optimizer, or where kernels run one kernel for all parameters."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pipeline.ops.layout import uses_kernels


class Updates(Protocol):
    """`Updates` applies an optimizer's gradients and clears them."""

    def update(self, averaged: Sequence[tuple[Tensor, Tensor]] = (), weight: Tensor | None = None) -> None:
        """Update the parameters, and move the average of each towards it; `weight` is a parameter's in its average."""


def adam_in_one_kernel(optimizer: torch.optim.Optimizer) -> Updates | None:
    """Return what updates the parameters of an Adam or AdamW, and None where only its own `step` can.

    The state is the optimizer's, in torch's form. Its learning rate must be one tensor for all groups.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or not all(map(_fits, parameters)):
        return None
    from pipeline.ops.triton.adam_kernel import AdamKernel

    return AdamKernel(optimizer)


def _fits(parameter: Tensor) -> bool:
    """Tell whether the kernel can take a parameter: it counts elements in int32."""
    plain = parameter.dtype == torch.float32 and parameter.is_contiguous() and parameter.numel() < 2**31
    return plain and uses_kernels(parameter.device)
