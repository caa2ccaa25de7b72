"""Multi-head attention over a packed axis: sequences of many lengths end to end, none of them padded.

T5's attention: scores are not scaled, and a learned bias of the relative position is added to them. `attention` is the
one entry and the one place to choose between implementations; so far there is one for all devices.
`reference_attention` says the same slowly, and is what the tests compare with.

Shape legend: T query positions and S key positions of all sequences, H heads, D head width; n sequences of one group,
Q queries and K keys of each of its sequences.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.backbones.dropout import dropout_factors

if TYPE_CHECKING:
    from pipeline.backbones.attention_triton import Spans


@dataclass(frozen=True)
class Group:
    """A run of consecutive sequences with equal sizes."""

    sequences: int
    queries: int
    keys: int


@dataclass(frozen=True)
class Layout:
    """How the packed axes of queries and keys fall into sequences.

    The sizes of groups are Python numbers and those of spans stay on the device, so that nothing waits for it.
    """

    groups: tuple[Group, ...] = ()
    # Padded batches, which are one group: True where a key is a real token, bool [sequences, keys]
    real_nK: Tensor | None = None
    spans: "Spans | None" = None  # on a GPU, instead of both


def attention(q_THD: Tensor, k_SHD: Tensor, v_SHD: Tensor, layout: Layout, bias_HQK: Tensor | None = None, *,
              causal: bool = False, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T + bias) v within each sequence, as T5 has it: no scaling (Raffel et al. 2020, section 2.1).

    Args:
        bias_HQK: added to the scores; made for the longest sequence, a shorter one takes the top left corner. float32.
            Where the layout has spans it is [H, R] by relative distance, as `RelativeBias.by_distance` gives it.
        causal: query i sees the keys 0 .. i.
        dropout: share of attention weights dropped (0 when not training).

    Returns:
        [T, H, D] in the type of `v_SHD`; the softmax is computed in float32 or better.
    """
    if layout.spans is not None:
        from pipeline.backbones.attention_triton import triton_attention  # Triton comes with CUDA builds of torch only

        return triton_attention(q_THD, k_SHD, v_SHD, layout.spans, bias_HQK, causal=causal, dropout=dropout)[0]
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
    slice would be a zero-filled tensor of the whole packed axis. Groups of near lengths are not merged by padding: on
    a CPU the padding costs more than the calls it saves.
    """

    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_SHD: Tensor, v_SHD: Tensor, bias_HQK: Tensor | None, layout: Layout,
                dropout: float) -> Tensor:
        out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
        factors = _dropout_factors(q_THD, layout, dropout) if dropout else [None] * len(layout.groups)
        saved = []
        for group, q, k, v, out, factor in zip(
                layout.groups, _views(q_THD, layout, "queries"), _views(k_SHD, layout, "keys"),
                _views(v_SHD, layout, "keys"), _views(out_THD, layout, "queries"), factors, strict=True):
            q, k, v = _heads_first(q), _heads_first(k), _heads_first(v)
            weights = _scores(q, k, group, bias_HQK, layout.real_nK).softmax(-1)
            out.copy_(torch.bmm(_dropped(weights, factor, v.dtype), v).view(out.shape))
            saved += [q, k, v, weights, factor]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.shapes = layout, (q_THD.shape, k_SHD.shape)
        ctx.bias_shape = bias_HQK.shape if bias_HQK is not None and ctx.needs_input_grad[3] else None
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layout, (dout_THD,), saved = ctx.layout, grads, ctx.saved_tensors
        dq_THD, dk_SHD, dv_SHD = (dout_THD.new_empty(ctx.shapes[side]) for side in (0, 1, 1))
        dbias_HQK = None
        if ctx.bias_shape is not None:
            dbias_HQK = saved[3].new_zeros(ctx.bias_shape)  # in the type of the softmax
        for i, (group, dout, dq, dk, dv) in enumerate(zip(
                layout.groups, _views(dout_THD, layout, "queries"), _views(dq_THD, layout, "queries"),
                _views(dk_SHD, layout, "keys"), _views(dv_SHD, layout, "keys"), strict=True)):
            *gradients, dscores = _group_backward(_heads_first(dout), *saved[5 * i:5 * i + 5])
            for target, gradient in zip((dq, dk, dv), gradients, strict=True):
                target.copy_(gradient.view(target.shape))
            if dbias_HQK is not None:
                dbias_HQK[:, :group.queries, :group.keys] += dscores.unflatten(0, (group.sequences, -1)).sum(0)
        return dq_THD, dk_SHD, dv_SHD, dbias_HQK, None, None


def _group_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor,
                    factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values [n * H, length, D], and of the scores [n * H, Q, K]."""
    dv = torch.bmm(_dropped(weights, factor, dout.dtype).mT, dout)
    dweights = torch.bmm(dout, v.mT).to(weights.dtype)
    if factor is not None:
        dweights *= factor
    dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
    low = dscores.to(q.dtype)
    return torch.bmm(low, k), torch.bmm(low.mT, q), dv, dscores


def _dropped(weights: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (weights if factor is None else weights * factor).to(dtype)


def _views(x_THD: Tensor, layout: Layout, side: str) -> list[Tensor]:
    """Each group's part of a packed axis of `queries` or `keys`, as [n, H, length, D]."""
    lengths = [getattr(group, side) for group in layout.groups]
    sizes = [group.sequences * length for group, length in zip(layout.groups, lengths, strict=True)]
    return [part.unflatten(0, (-1, length)).transpose(1, 2)
            for part, length in zip(x_THD.split(sizes), lengths, strict=True)]


def _heads_first(x_nHLD: Tensor) -> Tensor:
    """[n, H, length, D] -> contiguous [n * H, length, D], which `bmm` takes as it is."""
    return x_nHLD.flatten(0, 1).contiguous()


def _scores(q: Tensor, k: Tensor, group: Group, bias_HQK: Tensor | None, real_nK: Tensor | None) -> Tensor:
    """Biased and masked scores of one group [n * H, Q, K], in float32 or better."""
    scores = torch.bmm(q, k.mT)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores_nHQK = scores.unflatten(0, (group.sequences, -1))
    if bias_HQK is not None:
        scores_nHQK += bias_HQK[:, :group.queries, :group.keys]
    if real_nK is not None:
        scores_nHQK.masked_fill_(~real_nK[:, None, None, :], float("-inf"))
    return scores


def _dropout_factors(q_THD: Tensor, layout: Layout, p: float) -> list[Tensor]:
    """Each group's factors [n * H, Q, K], drawn together."""
    shapes = [(group.sequences * q_THD.shape[1], group.queries, group.keys) for group in layout.groups]
    sizes = [math.prod(shape) for shape in shapes]
    like = q_THD.new_empty(0, dtype=torch.promote_types(q_THD.dtype, torch.float32))
    factors = dropout_factors(torch.Size([sum(sizes)]), p, like)
    return [part.view(shape) for part, shape in zip(factors.split(sizes), shapes, strict=True)]


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
