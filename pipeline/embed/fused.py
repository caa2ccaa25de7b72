"""The operations between the matrix products of an encoder, each compiled to one GPU kernel by torch.compile.

Eager, each operation is up to ten kernels that read and write the whole batch; together they would take a fifth of the
time. To compile the operations takes seconds, to compile a model would take minutes. A CPU runs them as they stand.

Shape legend: T tokens on one axis, d model width, F feed-forward width, H heads, D head width.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Fused = TypeVar("Fused")


def fused(function: Callable[..., Fused], *arguments: Any) -> Fused:
    """Call one of the functions below on rows, as one kernel if the first argument is on a GPU.

    The number of rows changes from batch to batch, the width of a row does not. The tensors are marked accordingly, so
    that a kernel is compiled once per width.
    """
    if not arguments[0].is_cuda:
        return function(*arguments)
    for rows in arguments:
        if isinstance(rows, Tensor) and rows.ndim > 1:
            torch._dynamo.maybe_mark_dynamic(rows, 0)
            torch._dynamo.mark_static(rows, list(range(1, rows.ndim)))
    result: Fused = _compiled(function)(*arguments)
    return result


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def add_norm(h_Td: Tensor, x_Td: Tensor, weight_d: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (h + x in the type of h, the RMS norm of the sum in the type of the weight)."""
    h_Td = h_Td + x_Td
    return h_Td, rms_norm(h_Td, weight_d, eps)


def rms_norm(h_Td: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of each row, [T, d] in the type of the weight.

    The states are scaled in float32 and rounded before they are multiplied by the weight, as T5 and Qwen do.
    """
    n_Td = h_Td.float()
    n_Td = n_Td * torch.rsqrt(n_Td.square().mean(-1, keepdim=True) + eps)
    return n_Td.to(weight_d.dtype) * weight_d


def gate(x_TF: Tensor, act: Callable[[Tensor], Tensor], gated: bool) -> Tensor:
    """Return act(x) or, if gated, act(first half) * second half, where x is [T, 2F]."""
    if not gated:
        return act(x_TF)
    left_TF, right_TF = x_TF.chunk(2, -1)
    return act(left_TF) * right_TF


def silu_times(left_TF: Tensor, right_TF: Tensor) -> Tensor:
    return F.silu(left_TF) * right_TF


def gelu_tanh(x_TF: Tensor) -> Tensor:
    """Return GELU in its tanh approximation, which T5 calls "gelu_new"."""
    return F.gelu(x_TF, approximate="tanh")


def rotate(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Apply the rotary position embedding (Su et al. 2021) to queries or keys, in float32."""
    x = x_THD.float()
    cos, sin = cos_TD.float().unsqueeze(-2), sin_TD.float().unsqueeze(-2)
    left, right = x.chunk(2, -1)
    return (x * cos + torch.cat((-right, left), -1) * sin).to(x_THD.dtype)
