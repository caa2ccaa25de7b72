"""Multi-head attention over a packed axis: sequences of many lengths end to end, none of them padded.

T5's attention: scores are not scaled, and a learned bias of the relative position is added to them. `attention` and
`packed_attention` are the one place to choose between implementations, as `attend_to_ancestors` and `attend_to_windows`
are for a decoding step. `reference_attention` says the same slowly, and is what the tests compare with.

Shape legend: T query positions and S key positions of all sequences, H heads, D head width; n sequences of one group,
Q queries and K keys of each of its sequences; R queries (windows x beams) and J positions so far of a decoding step.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.ops.dropout import dropout_factors
from pipeline.ops.layout import Group, Layout, Mass, separate, uses_kernels


def attention(
    q_THD: Tensor,
    k_SHD: Tensor,
    v_SHD: Tensor,
    layout: Layout,
    bias_HQK: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    mass: Mass | None = None,
) -> tuple[Tensor, Tensor | None]:
    """softmax(q k^T + bias) v within each sequence, as T5 has it: no scaling (Raffel et al. 2020, section 2.1).

    Args:
        bias_HQK: added to the scores; made for the longest sequence, a shorter one takes the top left corner, and
            pruned ones the rows and columns `layout.positions_S`. float32. Where `layout.bias_by_distance`, it is
            [H, R] by relative distance. `RelativeBias.for_layout` gives what the layout asks for.
        causal: query i sees the keys 0 .. i.
        dropout: share of attention weights dropped (0 when not training).
        mass: also return what each key receives, summed over heads and queries.

    Returns:
        ([T, H, D] in the type of `v_SHD`, None or with `mass` [S] in the type of the softmax, which carries no
        gradient). The softmax is computed in float32 or better.
    """
    return packed_attention((q_THD, k_SHD, v_SHD), layout, bias_HQK, causal=causal, dropout=dropout, mass=mass)


def packed_attention(
    qkv: Sequence[Tensor],
    layout: Layout,
    bias_HQK: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    mass: Mass | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`attention` of what one product made: on a GPU its gradient is written in one piece too.

    Args:
        qkv: queries, keys and values [T, 3, H, D]; or queries [T, H, D], and keys and values [S, 2, H, D]; or all three
            apart, as `attention` takes them.
    """
    if (spans := layout.spans) is not None:
        if not torch.is_grad_enabled() and dropout == 0 and mass is None and spans.positions is None:
            from pipeline.ops.triton.decoding import attend

            return attend(*separate(qkv), spans, bias_HQK, causal), None
        from pipeline.ops.triton.attention import triton_attention

        return triton_attention(qkv, spans, bias_HQK, causal=causal, dropout=dropout, mass=mass)
    q_THD, k_SHD, v_SHD = separate(qkv)
    if causal:
        bias_HQK = _with_causal_mask(bias_HQK, q_THD, layout)
        layout = replace(layout, lengths_n=None)  # padding comes later than every token, so that none sees it
    return _GroupedAttention.apply(q_THD, k_SHD, v_SHD, bias_HQK, layout, dropout, mass)


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
    def forward(
        ctx: Any,
        q_THD: Tensor,
        k_SHD: Tensor,
        v_SHD: Tensor,
        bias_HQK: Tensor | None,
        layout: Layout,
        dropout: float,
        mass: Mass | None,
    ) -> tuple[Tensor, Tensor | None]:
        out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
        factors = _dropout_factors(q_THD, layout, dropout) if dropout else [None] * len(layout.groups)
        saved, masses = [], []
        for group, q, k, v, out, factor, real, entries_nQK in zip(
            layout.groups,
            _views(q_THD, layout, "queries"),
            _views(k_SHD, layout, "keys"),
            _views(v_SHD, layout, "keys"),
            _views(out_THD, layout, "queries"),
            factors,
            layout.real_nK(),
            _bias_entries(layout, bias_HQK),
            strict=True,
        ):
            q, k, v = _heads_first(q), _heads_first(k), _heads_first(v)
            weights = _scores(q, k, group, bias_HQK, entries_nQK, real).softmax(-1)
            dropped = weights if factor is None else weights * factor
            out.copy_(torch.bmm(dropped.to(v.dtype), v).view(out.shape))
            if mass is not None:
                masses.append(
                    _mass_nK(
                        dropped if mass.after_dropout else weights, group, None if mass.padded_queries else real
                    ).flatten()
                )
            saved += [q, k, v, weights, factor]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.shapes = layout, (q_THD.shape, k_SHD.shape)
        ctx.bias_shape = bias_HQK.shape if bias_HQK is not None and ctx.needs_input_grad[3] else None
        if mass is None:
            return out_THD, None
        mass_S = torch.cat(masses)
        ctx.mark_non_differentiable(mass_S)
        return out_THD, mass_S

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layout, dout_THD, saved = ctx.layout, grads[0], ctx.saved_tensors
        dq_THD, dk_SHD, dv_SHD = (dout_THD.new_empty(ctx.shapes[side]) for side in (0, 1, 1))
        dbias_HQK = None
        if ctx.bias_shape is not None:
            dbias_HQK = saved[3].new_zeros(ctx.bias_shape)  # in the type of the softmax
        for i, (group, dout, dq, dk, dv, entries_nQK) in enumerate(
            zip(
                layout.groups,
                _views(dout_THD, layout, "queries"),
                _views(dq_THD, layout, "queries"),
                _views(dk_SHD, layout, "keys"),
                _views(dv_SHD, layout, "keys"),
                _bias_entries(layout, dbias_HQK),
                strict=True,
            )
        ):
            *gradients, dscores = _group_backward(_heads_first(dout), *saved[5 * i : 5 * i + 5])
            for target, gradient in zip((dq, dk, dv), gradients, strict=True):
                target.copy_(gradient.view(target.shape))
            if dbias_HQK is not None:
                dscores_nHQK = dscores.unflatten(0, (group.sequences, -1))
                if entries_nQK is None:
                    dbias_HQK[:, : group.queries, : group.keys] += dscores_nHQK.sum(0)
                else:
                    dbias_HQK.flatten(1).index_add_(1, entries_nQK.flatten(), dscores_nHQK.transpose(0, 1).flatten(1))
        return dq_THD, dk_SHD, dv_SHD, dbias_HQK, None, None, None


def _bias_entries(layout: Layout, bias_HQK: Tensor | None) -> list[Tensor | None]:
    """Where tokens were pruned: of each group, which entry of the flattened bias belongs to each score, [n, Q, K]."""
    if bias_HQK is None or layout.positions_S is None:
        return [None] * len(layout.groups)
    sizes = [group.sequences * group.keys for group in layout.groups]
    positions = [
        part.view(group.sequences, group.keys)
        for group, part in zip(layout.groups, layout.positions_S.split(sizes), strict=True)
    ]
    return [position_nK[:, :, None] * bias_HQK.shape[2] + position_nK[:, None, :] for position_nK in positions]


def _mass_nK(weights: Tensor, group: Group, real_nK: Tensor | None) -> Tensor:
    """Sum over heads and queries (real ones only, where `real_nK` is given) of weights [n * H, Q, K]."""
    mass_nQK = weights.unflatten(0, (group.sequences, -1)).sum(1)
    return mass_nQK.sum(1) if real_nK is None else (mass_nQK * real_nK[:, :, None]).sum(1)


def _group_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, factor: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    return [
        part.unflatten(0, (-1, length)).transpose(1, 2)
        for part, length in zip(x_THD.split(sizes), lengths, strict=True)
    ]


def _heads_first(x_nHLD: Tensor) -> Tensor:
    """[n, H, length, D] -> contiguous [n * H, length, D], which `bmm` takes as it is."""
    return x_nHLD.flatten(0, 1).contiguous()


def _scores(
    q: Tensor, k: Tensor, group: Group, bias_HQK: Tensor | None, entries_nQK: Tensor | None, real_nK: Tensor | None
) -> Tensor:
    """Biased and masked scores of one group [n * H, Q, K], in float32 or better."""
    scores = torch.bmm(q, k.mT)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores_nHQK = scores.unflatten(0, (group.sequences, -1))
    if bias_HQK is not None and entries_nQK is not None:
        scores_nHQK += bias_HQK.flatten(1)[:, entries_nQK].transpose(0, 1)
    elif bias_HQK is not None:
        scores_nHQK += bias_HQK[:, : group.queries, : group.keys]
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


def attend_to_ancestors(
    q_RHD: Tensor, past: Sequence[tuple[Tensor, Tensor]], rows_RJ: Tensor, bias_HJ: Tensor
) -> Tensor:
    """Self-attention of each beam's newest position. On a GPU keys and values are read where they were written.

    Args:
        past: keys and values [rows of that level, H, D] of each of the J levels, those of the R queries last.
        rows_RJ: int64 [R, J - 1], of each query the row of its ancestor in each earlier level.
        bias_HJ: float32, added to the scores.
    """
    if uses_kernels(q_RHD.device):
        from pipeline.ops.triton import decoding

        return decoding.attend_to_ancestors(q_RHD, past, rows_RJ, bias_HJ)
    k_RHJD, v_RHJD = (
        torch.stack([*(x[rows] for x, rows in zip(earlier, rows_RJ.unbind(1), strict=True)), newest], 2)
        for *earlier, newest in zip(*past, strict=True)
    )
    scores_RHJ = (k_RHJD @ q_RHD[..., None])[..., 0]
    scores_RHJ = scores_RHJ.to(torch.promote_types(scores_RHJ.dtype, torch.float32)) + bias_HJ
    return (scores_RHJ.softmax(-1).to(v_RHJD.dtype)[..., None, :] @ v_RHJD)[..., 0, :]


def attend_to_windows(q_RHD: Tensor, k_SHD: Tensor, v_SHD: Tensor, encoder: Layout) -> Tensor:
    """Attention of equally many queries of each window to all of the window; its keys are shared, not copied.

    Args:
        encoder: the layout of the keys.
    """
    if encoder.spans is not None:
        from pipeline.ops.triton import decoding

        return decoding.attend(q_RHD, k_SHD, v_SHD, encoder.spans, equal=True)
    windows = encoder.sequences
    beams = Layout.equal(windows, len(q_RHD) // windows, q_RHD.device)
    return attention(q_RHD, k_SHD, v_SHD, encoder.cross(beams))[0]
