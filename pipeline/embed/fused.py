"""What lies between the matrix products of an encoder: one GPU kernel each, by torch.compile.

Eager, each of these is up to ten kernels that read and write the whole batch; together they would take a fifth of the
time. Compiling them takes seconds, compiling a model would take minutes. A CPU runs them as they stand.

Shape legend: T tokens, d model width, F feed-forward width, H heads, D head width.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def fused(function: Callable, *arguments: Any) -> Any:
    """One of the functions below, on rows: as one kernel where the first argument is on a GPU.

    Their number changes from batch to batch, the width of a row does not: told so, a kernel is compiled once per width.
    """
    if not arguments[0].is_cuda:
        return function(*arguments)
    for rows in arguments:
        if isinstance(rows, Tensor) and rows.ndim > 1:
            torch._dynamo.maybe_mark_dynamic(rows, 0)
            torch._dynamo.mark_static(rows, list(range(1, rows.ndim)))
    return _compiled(function)(*arguments)


@functools.cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function)


def add_norm(h_Td: Tensor, x_Td: Tensor, weight_d: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(h + x in the type of h, its RMS norm in the type of the weight)."""
    h_Td = h_Td + x_Td
    return h_Td, rms_norm(h_Td, weight_d, eps)


def rms_norm(h_Td: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """Computed in float32, then in the type of the weight: the scaled states are rounded first, as T5 and Qwen do."""
    n_Td = h_Td.float()
    n_Td = n_Td * torch.rsqrt(n_Td.square().mean(-1, keepdim=True) + eps)
    return n_Td.to(weight_d.dtype) * weight_d


def gate(x_TF: Tensor, act: Any, gated: bool) -> Tensor:
    """act(x), or where gated act(first half) * second half."""
    if not gated:
        return act(x_TF)
    left_TF, right_TF = x_TF.chunk(2, -1)
    return act(left_TF) * right_TF


def silu_times(left_TF: Tensor, right_TF: Tensor) -> Tensor:
    return F.silu(left_TF) * right_TF


def gelu_tanh(x_TF: Tensor) -> Tensor:
    """T5's "gelu_new"."""
    return F.gelu(x_TF, approximate="tanh")


def rotate(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of queries or keys, in float32."""
    x, cos, sin = x_THD.float(), cos_TD.float().unsqueeze(-2), sin_TD.float().unsqueeze(-2)
    left, right = x.chunk(2, -1)
    return (x * cos + torch.cat((-right, left), -1) * sin).to(x_THD.dtype)
