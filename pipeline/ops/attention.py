"""Compute multi-head attention over a packed axis: sequences of many lengths end to end, none of them padded.

This is T5's attention: scores are not scaled, and a learned bias of the relative position is added to them. Only
`attention`, `packed_attention` and, for a decoding step, `attend_to_ancestors` and `attend_to_windows` choose between
the implementations: batched products on a CPU, and the Triton kernels of ops/triton/. `reference_attention` computes
the same slowly; the tests compare with it.

Shape legend: T query positions and S key positions of all sequences, H heads, D head width; n sequences of one group,
Q queries and J keys of each of its sequences; R queries of a decoding step, one per beam of each window, which see the
J positions so far.
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
    bias_HQJ: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    mass: Mass | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute softmax(q k^T + bias) v within each sequence, as in T5 without scaling (Raffel et al. 2020, section 2.1).

    Args:
        layout: how the axes of queries and keys fall into sequences.
        bias_HQJ: float32, added to the scores. It is made for the longest sequence; a shorter one takes the top left
            corner, and a pruned one the rows and columns `layout.positions_S`. Where `layout.bias_by_distance`, it is
            [H, distances] instead. `RelativeBias.for_layout` builds the form that the layout asks for.
        causal: query i sees the keys 0 .. i.
        dropout: share of attention weights dropped (0 when not training).
        mass: also return the weights that each key receives, summed over heads and queries.

    Returns:
        (output [T, H, D] in the type of `v_SHD`, attention mass), where the mass is None or, with `mass`, [S] in the
        type of the softmax and without a gradient. The softmax is computed in float32 or better.
    """
    return packed_attention((q_THD, k_SHD, v_SHD), layout, bias_HQJ, causal=causal, dropout=dropout, mass=mass)


def packed_attention(
    qkv: Sequence[Tensor],
    layout: Layout,
    bias_HQJ: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    mass: Mass | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute `attention` of queries, keys and values that one product made.

    They stay one tensor, so that on a GPU their gradient is written in one piece too.

    Args:
        qkv: queries, keys and values [T, 3, H, D]; or queries [T, H, D], and keys and values [S, 2, H, D]; or all three
            apart, as `attention` takes them.
    """
    # The layout knows the device: it has spans where kernels run, else groups.
    if (spans := layout.spans) is not None:
        # A beam search needs no gradient, dropout or mass: its kernel takes all lengths in one launch.
        if not torch.is_grad_enabled() and dropout == 0 and mass is None and spans.positions is None:
            from pipeline.ops.triton.decoding import attend

            return attend(*separate(qkv), spans, bias_HQJ, causal), None
        # Training takes one launch per class of lengths.
        from pipeline.ops.triton.attention import triton_attention

        return triton_attention(qkv, spans, bias_HQJ, causal=causal, dropout=dropout, mass=mass)
    # On a CPU the causal mask becomes part of the bias: -inf where a key is later than the query.
    q_THD, k_SHD, v_SHD = separate(qkv)
    if causal:
        bias_HQJ = _with_causal_mask(bias_HQJ, q_THD, layout)
        layout = replace(layout, lengths_W=None)  # padding comes later than every token, so that none sees it
    result: tuple[Tensor, Tensor | None] = _GroupedAttention.apply(  # type: ignore[no-untyped-call]  # torch's
        q_THD, k_SHD, v_SHD, bias_HQJ, layout, dropout, mass
    )
    return result


def _with_causal_mask(bias_HQJ: Tensor | None, q_THD: Tensor, layout: Layout) -> Tensor:
    """Set the bias (0 where none is given) to -inf for keys later than the query: 0 -inf | 0 0 for two positions."""
    if bias_HQJ is None:
        longest = max(group.keys for group in layout.groups)
        bias_HQJ = q_THD.new_zeros(q_THD.shape[1], longest, longest, dtype=torch.float32)
    later = torch.ones(bias_HQJ.shape[1:], dtype=torch.bool, device=bias_HQJ.device).triu_(1)
    return bias_HQJ.masked_fill(later, float("-inf"))


class _GroupedAttention(torch.autograd.Function):
    """`_GroupedAttention` computes one group at a time by batched matrix products.

    It is an autograd function because autograd over slices costs more than the products themselves: the gradient of
    each slice would be a zero-filled tensor of the whole packed axis. Groups of near lengths are not merged by padding:
    on a CPU the padding costs more than the calls it saves.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_THD: Tensor,
        k_SHD: Tensor,
        v_SHD: Tensor,
        bias_HQJ: Tensor | None,
        layout: Layout,
        dropout: float,
        mass: Mass | None,
    ) -> tuple[Tensor, Tensor | None]:
        out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
        factors = _dropout_factors(q_THD, layout, dropout) if dropout else [None] * len(layout.groups)
        saved: list[Tensor | None] = []
        masses: list[Tensor] = []
        # Two sequences of 3 tokens and 4 heads are one group: its views [2, 4, 3, D] share the memory of the axis.
        for group, q, k, v, out, factor, real, entries_nQJ in zip(
            layout.groups,
            _views(q_THD, layout, "queries"),
            _views(k_SHD, layout, "keys"),
            _views(v_SHD, layout, "keys"),
            _views(out_THD, layout, "queries"),
            factors,
            layout.real_nJ(),
            _bias_entries(layout, bias_HQJ),
            strict=True,
        ):
            # One product per sequence and head, 2 * 4 = 8 of them: [8, 3, D] x [8, D, 3] -> weights [8, 3, 3]
            q, k, v = _heads_first(q), _heads_first(k), _heads_first(v)
            weights = _scores(q, k, group, bias_HQJ, entries_nQJ, real).softmax(-1)
            dropped = weights if factor is None else weights * factor
            out.copy_(torch.bmm(dropped.to(v.dtype), v).view(out.shape))
            if mass is not None:
                counted = dropped if mass.after_dropout else weights
                masses.append(_mass_nJ(counted, group, None if mass.padded_queries else real).flatten())
            saved += [q, k, v, weights, factor]  # five per group, which backward takes five at a time
        ctx.save_for_backward(*saved)
        ctx.layout = layout
        ctx.shapes = (q_THD.shape, k_SHD.shape)
        ctx.bias_shape = bias_HQJ.shape if bias_HQJ is not None and ctx.needs_input_grad[3] else None
        if mass is None:
            return out_THD, None
        mass_S = torch.cat(masses)
        ctx.mark_non_differentiable(mass_S)
        return out_THD, mass_S

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layout = ctx.layout
        dout_THD = grads[0]  # the mass has no gradient
        saved = ctx.saved_tensors
        dq_THD, dk_SHD, dv_SHD = (dout_THD.new_empty(ctx.shapes[side]) for side in (0, 1, 1))
        dbias_HQJ = None
        if ctx.bias_shape is not None:
            dbias_HQJ = saved[3].new_zeros(ctx.bias_shape)  # in the type of the softmax
        for i, (group, dout, dq, dk, dv, entries_nQJ) in enumerate(
            zip(
                layout.groups,
                _views(dout_THD, layout, "queries"),
                _views(dq_THD, layout, "queries"),
                _views(dk_SHD, layout, "keys"),
                _views(dv_SHD, layout, "keys"),
                _bias_entries(layout, dbias_HQJ),
                strict=True,
            )
        ):
            # Write the gradients through the views, straight onto the packed axes.
            *gradients, dscores = _group_backward(_heads_first(dout), *saved[5 * i : 5 * i + 5])
            for target, gradient in zip((dq, dk, dv), gradients, strict=True):
                target.copy_(gradient.view(target.shape))
            # A score's gradient is that of its entry of the bias: the top left corner, or single entries after pruning.
            if dbias_HQJ is not None:
                dscores_nHQJ = torch.unflatten(dscores, 0, (group.sequences, -1))
                if entries_nQJ is None:
                    dbias_HQJ[:, : group.queries, : group.keys] += dscores_nHQJ.sum(0)
                else:
                    dbias_HQJ.flatten(1).index_add_(1, entries_nQJ.flatten(), dscores_nHQJ.transpose(0, 1).flatten(1))
        return dq_THD, dk_SHD, dv_SHD, dbias_HQJ, None, None, None


def _bias_entries(layout: Layout, bias_HQJ: Tensor | None) -> list[Tensor | None]:
    """Return for each group which entry of the flattened bias belongs to each score, int64 [n, Q, J].

    None for each group where no tokens were pruned. A sequence keeps positions 0 and 2 of 3 -> entries 0 2 | 6 8
    """
    if bias_HQJ is None or layout.positions_S is None:
        return [None] * len(layout.groups)
    sizes = [group.sequences * group.keys for group in layout.groups]
    positions = [
        part.view(group.sequences, group.keys)
        for group, part in zip(layout.groups, torch.split(layout.positions_S, sizes), strict=True)
    ]
    return [position_nJ[:, :, None] * bias_HQJ.shape[2] + position_nJ[:, None, :] for position_nJ in positions]


def _mass_nJ(weights: Tensor, group: Group, real_nJ: Tensor | None) -> Tensor:
    """Sum weights [n * H, Q, J] over heads and queries, [n, J]; over real queries only, where `real_nJ` is given."""
    mass_nQJ = torch.unflatten(weights, 0, (group.sequences, -1)).sum(1)
    if real_nJ is not None:
        mass_nQJ = mass_nQJ * real_nJ[:, :, None]
    return mass_nQJ.sum(1)


def _group_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, factor: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values [n * H, length, D], and of the scores [n * H, Q, J]."""
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
    """Return each group's part of a packed axis of `queries` or `keys`, as a view [n, H, length, D]."""
    lengths = [getattr(group, side) for group in layout.groups]
    sizes = [group.sequences * length for group, length in zip(layout.groups, lengths, strict=True)]
    return [
        torch.unflatten(part, 0, (-1, length)).transpose(1, 2)
        for part, length in zip(torch.split(x_THD, sizes), lengths, strict=True)
    ]


def _heads_first(x_nHQD: Tensor) -> Tensor:
    """Copy [n, H, length, D] to contiguous [n * H, length, D], which `bmm` takes as it is."""
    return x_nHQD.flatten(0, 1).contiguous()


def _scores(
    q: Tensor, k: Tensor, group: Group, bias_HQJ: Tensor | None, entries_nQJ: Tensor | None, real_nJ: Tensor | None
) -> Tensor:
    """Compute the biased and masked scores of one group, [n * H, Q, J] in float32 or better."""
    scores = torch.bmm(q, k.mT)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores_nHQJ = torch.unflatten(scores, 0, (group.sequences, -1))  # a view: what is added below changes `scores`
    if bias_HQJ is not None and entries_nQJ is not None:
        scores_nHQJ += bias_HQJ.flatten(1)[:, entries_nQJ].transpose(0, 1)
    elif bias_HQJ is not None:
        scores_nHQJ += bias_HQJ[:, : group.queries, : group.keys]
    if real_nJ is not None:
        scores_nHQJ.masked_fill_(~real_nJ[:, None, None, :], float("-inf"))
    return scores


def _dropout_factors(q_THD: Tensor, layout: Layout, p: float) -> list[Tensor]:
    """Draw the dropout factors of all groups together, and return each group's as [n * H, Q, J]."""
    shapes = [(group.sequences * q_THD.shape[1], group.queries, group.keys) for group in layout.groups]
    sizes = [math.prod(shape) for shape in shapes]
    like = q_THD.new_empty(0, dtype=torch.promote_types(q_THD.dtype, torch.float32))
    factors = dropout_factors(torch.Size([sum(sizes)]), p, like)
    return [part.view(shape) for part, shape in zip(torch.split(factors, sizes), shapes, strict=True)]


def attend_to_ancestors(
    q_RHD: Tensor, past: Sequence[tuple[Tensor, Tensor]], rows_RJ: Tensor, bias_HJ: Tensor
) -> Tensor:
    """Compute self-attention of each beam's newest position to itself and its ancestors, [R, H, D].

    An ancestor is the position of an earlier level that a beam continues. On a GPU its keys and values are read where
    they were written.

    rows_RJ 0 2 says: this query sees row 0 of level 1, row 2 of level 2, and its newest position of level 3

    Args:
        past: for each of the J levels keys and values [rows of the level, H, D]; the R queries are the last level.
        rows_RJ: int64 [R, J - 1], the row of each query's ancestor in each earlier level.
        bias_HJ: float32, added to the scores.
    """
    if uses_kernels(q_RHD.device):
        from pipeline.ops.triton import decoding

        return decoding.attend_to_ancestors(q_RHD, past, rows_RJ, bias_HJ)
    # On a CPU copy each ancestor's row, and append the newest position: J - 1 rows and one, stacked to [R, H, J, D].
    k_RHJD, v_RHJD = (
        torch.stack([*(x[rows] for x, rows in zip(earlier, rows_RJ.unbind(1), strict=True)), newest], 2)
        for *earlier, newest in zip(*past, strict=True)
    )
    # One query per row: scores [R, H, J], their softmax in float32 or better, then the weighted sum of the values.
    scores_RHJ = (k_RHJD @ q_RHD[..., None])[..., 0]
    scores_RHJ = scores_RHJ.to(torch.promote_types(scores_RHJ.dtype, torch.float32)) + bias_HJ
    return (scores_RHJ.softmax(-1).to(v_RHJD.dtype)[..., None, :] @ v_RHJD)[..., 0, :]


def attend_to_windows(q_RHD: Tensor, k_SHD: Tensor, v_SHD: Tensor, encoder: Layout) -> Tensor:
    """Compute attention of equally many queries of each window to all keys of that window, [R, H, D].

    The queries of a window (its beams) share its keys, which are not copied.

    Args:
        encoder: the layout of the keys.
    """
    if encoder.spans is not None:
        from pipeline.ops.triton import decoding

        return decoding.attend(q_RHD, k_SHD, v_SHD, encoder.spans, equal=True)
    # On a CPU it is a cross-attention: 6 queries of 2 windows are 2 sequences of 3 queries.
    windows = encoder.sequences
    beams = Layout.equal(windows, len(q_RHD) // windows, q_RHD.device)
    return attention(q_RHD, k_SHD, v_SHD, encoder.cross(beams))[0]
