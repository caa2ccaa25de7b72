"""Multi-head attention over a packed axis: sequences of many lengths end to end, none of them padded.

T5's attention: scores are not scaled, and a learned bias of the relative position is added to them. `attention` is the
one entry and the one place that chooses an implementation. `reference_attention` says the same slowly, and is what the
tests compare with.

Shape legend: T query positions and S key positions of all sequences, H heads, D head width; n sequences of one group,
Q queries and K keys of each of its sequences.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """A run of consecutive sequences with equal sizes."""

    sequences: int
    queries: int
    keys: int


@dataclass(frozen=True)
class Layout:
    """How the packed axes of queries and keys fall into sequences.

    The sizes are Python numbers, so that no implementation has to wait for the device to learn them.
    """

    groups: tuple[Group, ...]
    # Padded batches, which are one group: True where a key is a real token, bool [sequences, keys]
    real_nK: Tensor | None = None


def attention(q_THD: Tensor, k_SHD: Tensor, v_SHD: Tensor, layout: Layout, bias_HQK: Tensor | None = None, *,
              causal: bool = False, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T + bias) v within each sequence, as T5 has it: no scaling (Raffel et al. 2020, section 2.1).

    Args:
        bias_HQK: added to the scores; made for the longest sequence, a shorter one takes the top left corner. float32.
        causal: query i sees the keys 0 .. i.
        dropout: share of attention weights dropped (0 when not training).

    Returns:
        [T, H, D] in the type of `v_SHD`; the softmax is computed in float32 or better.
    """
    if causal:
        bias_HQK = _with_causal_mask(bias_HQK, q_THD, layout)
    return _GroupedAttention.apply(q_THD, k_SHD, v_SHD, bias_HQK, layout, dropout)


def _with_causal_mask(bias_HQK: Tensor | None, q_THD: Tensor, layout: Layout) -> Tensor:
    if bias_HQK is None:
        longest = max(group.keys for group in layout.groups)
        bias_HQK = q_THD.new_zeros(q_THD.shape[1], longest, longest, dtype=torch.float32)
    later = torch.ones(bias_HQK.shape[1:], dtype=torch.bool, device=bias_HQK.device).triu_(1)
    return bias_HQK.masked_fill(later, float("-inf"))


class _GroupedAttention(torch.autograd.Function):
    """Batched matrix products over one group at a time.

    A function of its own because autograd over slices costs more than the products themselves: the gradient of each
    slice would be a zero-filled tensor of the whole packed axis.
    """

    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_SHD: Tensor, v_SHD: Tensor, bias_HQK: Tensor | None, layout: Layout,
                dropout: float) -> Tensor:
        out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
        ctx.layout, ctx.dropout, ctx.weights = layout, dropout, []
        ctx.save_for_backward(q_THD, k_SHD, v_SHD, bias_HQK)
        views = zip(*(_views(x, layout, side) for x, side in ((q_THD, 0), (k_SHD, 1), (v_SHD, 1), (out_THD, 0))),
                    strict=True)
        for q, k, v, out in views:
            scores = _scores(q, k, bias_HQK, layout.real_nK)
            weights = F.softmax(scores, dim=-1)
            keep = None
            dropped = weights
            if dropout:
                dropped, keep = torch.native_dropout(weights, dropout, True)
            out.copy_(dropped.to(v.dtype) @ v)
            ctx.weights.append((weights, dropped, keep))
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_THD, k_SHD, v_SHD, bias_HQK = ctx.saved_tensors
        dq_THD, dk_SHD, dv_SHD = (torch.empty_like(x, memory_format=torch.contiguous_format)
                                  for x in (q_THD, k_SHD, v_SHD))
        dbias_HQK = torch.zeros_like(bias_HQK) if ctx.needs_input_grad[3] else None
        sides = ((q_THD, 0), (k_SHD, 1), (v_SHD, 1), (grads[0], 0), (dq_THD, 0), (dk_SHD, 1), (dv_SHD, 1))
        views = zip(ctx.weights, *(_views(x, ctx.layout, side) for x, side in sides), strict=True)
        for (weights, dropped, keep), q, k, v, dout, dq, dk, dv in views:
            dv.copy_(dropped.to(dout.dtype).mT @ dout)
            dweights = (dout @ v.mT).to(weights.dtype)
            if keep is not None:
                dweights = dweights * keep / (1 - ctx.dropout)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            if dbias_HQK is not None:
                dbias_HQK[:, :q.shape[2], :k.shape[2]] += dscores.sum(0)
            dscores = dscores.to(q.dtype)
            dq.copy_(dscores @ k)
            dk.copy_(dscores.mT @ q)
        return dq_THD, dk_SHD, dv_SHD, dbias_HQK, None, None


def _views(x_THD: Tensor, layout: Layout, side: int) -> list[Tensor]:
    """Each group's part of a packed axis as [n, H, length, D]; side 0 is the queries', 1 the keys'."""
    lengths = [group.keys if side else group.queries for group in layout.groups]
    sizes = [group.sequences * length for group, length in zip(layout.groups, lengths, strict=True)]
    return [part.unflatten(0, (-1, length)).transpose(1, 2)
            for part, length in zip(x_THD.split(sizes), lengths, strict=True)]


def _scores(q: Tensor, k: Tensor, bias_HQK: Tensor | None, real_nK: Tensor | None) -> Tensor:
    """Biased and masked scores of one group [n, H, Q, K], in float32 or better."""
    scores = q @ k.mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if bias_HQK is not None:
        scores += bias_HQK[:, :q.shape[2], :k.shape[2]]
    if real_nK is not None:
        scores.masked_fill_(~real_nK[:, None, None, :], float("-inf"))
    return scores


def reference_attention(q_THD: Tensor, k_SHD: Tensor, v_SHD: Tensor, layout: Layout, bias_HQK: Tensor | None = None, *,
                        causal: bool = False) -> Tensor:
    """`attention` without dropout, one sequence and one head at a time, in float64: the oracle."""
    out_THD = torch.zeros(q_THD.shape, dtype=torch.float64, device=q_THD.device)
    t = s = row = 0
    for group in layout.groups:
        for _ in range(group.sequences):
            real = slice(None) if layout.real_nK is None else layout.real_nK[row]
            for head in range(q_THD.shape[1]):
                q, k, v = (x[start:start + length, head].double() for x, start, length in (
                    (q_THD, t, group.queries), (k_SHD, s, group.keys), (v_SHD, s, group.keys)))
                scores = q @ k.T
                if bias_HQK is not None:
                    scores = scores + bias_HQK[head, :group.queries, :group.keys].double()
                if causal:
                    scores = scores + torch.full_like(scores, float("-inf")).triu(1)
                out_THD[t:t + group.queries, head] = scores[:, real].softmax(-1) @ v[real]
            t, s, row = t + group.queries, s + group.keys, row + 1
    return out_THD
