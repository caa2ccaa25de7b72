"""The packed attention as Triton kernels: one program walks over whole sequences, and no attention map is ever stored.

Sequences are short, at most 512 positions, so a program holds all queries and keys of a sequence and head: nothing is
shared between programs, nothing is added atomically, and equal inputs give equal bits. Sequences are sorted by length;
a launch serves the lengths that its tile fits, with a fixed number of programs, so that no shape ever depends on data.

Backward recomputes the weights from the saved log-sum-exp. The gradient of T5's learned bias is taken in two stages:
each program sums dS over its sequences by relative distance (the diagonals), and what the programs hold is then summed.
Dropout is a hash of (seed, query, head, key), so that both passes see the same mask.

Written for Hopper, correct on any CUDA GPU that Triton supports. `reference.reference_attention` is the oracle.

Shape legend: T query and S key positions of all sequences, W sequences, H heads, D head width, R relative distances.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from pipeline.ops.layout import Mass, Spans, separate
from pipeline.ops.triton.attention_kernels import backward_kernel, forward_kernel
from pipeline.ops.triton.launch import Launch, Tile, add_diagonals, launch_all, launches_for, with_reach

# mypy: disable-error-code="no-untyped-def"
# What measured best on an H200, by class of lengths; the others for at most 16 queries of each sequence
FORWARD = (Tile(16, 16, 1, 16), Tile(32, 32, 1, 16), Tile(64, 64, 4, 8), Tile(64, 64, 4, 8), Tile(64, 32, 4, 8))
BACKWARD = (Tile(16, 16, 2, 8), Tile(32, 32, 2, 8), Tile(64, 64, 4, 4), Tile(64, 64, 4, 4), Tile(64, 64, 4, 2))
FEW_FORWARD = (Tile(16, 16, 1, 16), Tile(16, 32, 2, 8), Tile(16, 64, 1, 16), Tile(16, 128, 4, 8), Tile(16, 64, 4, 4))
FEW_BACKWARD = (Tile(16, 16, 1, 16), Tile(16, 32, 1, 16), Tile(16, 64, 2, 8), Tile(16, 128, 4, 8), Tile(16, 64, 4, 4))
AFTER_DROPOUT, PADDED_QUERIES = 2, 4  # added to 1: which mass the forward kernel sums


def triton_attention(
    qkv: Sequence[Tensor],
    spans: Spans,
    bias_HR: Tensor | None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    mass: Mass | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `attention.attention`, with the bias by relative distance.

    Args:
        qkv: as `attention.packed_attention` takes them.
        bias_HR: column R // 2 + d is the bias of key position minus query position d; R is odd. Self-attention only.
        mass: also return, per key, the weights summed over heads and queries, float32 [S], no gradient.
    """
    seed = torch.randint(2**31 - 1, (1,), device=qkv[0].device, dtype=torch.int32) if dropout else spans.classes[:1]
    o_THD, _, mass_SH = _forward_op(
        list(qkv),
        bias_HR,
        spans.starts_q,
        spans.starts_k,
        spans.lengths_k,
        spans.classes,
        spans.positions if bias_HR is not None else None,
        seed,
        spans.longest_q,
        spans.longest_k,
        spans.reach,
        causal,
        dropout,
        0 if mass is None else 1 + AFTER_DROPOUT * mass.after_dropout + PADDED_QUERIES * mass.padded_queries,
    )
    return o_THD, mass_SH.sum(1) if mass is not None else None


def _options(
    q: Tensor, bias: Tensor | None, positions: Tensor | None, causal: bool, dropout: float, launch: Launch
) -> dict[str, object]:
    return {
        "CLASS": launch.index,
        "HAS_BIAS": bias is not None,
        "PRUNED": positions is not None,
        "CAUSAL": causal,
        "DROPOUT": dropout > 0,
        "EXACT": q.dtype == torch.float32,
        "ONE_TILE": launch.one_tile and positions is None,
        "BM": launch.rows,
        "BN": launch.columns,
        "D": q.shape[2],
        "BD": max(16, triton.next_power_of_2(q.shape[2])),
        "num_warps": launch.warps,
        "num_stages": 1,
    }


def _columns(bias_HR: Tensor | None) -> int:
    return 1 if bias_HR is None else bias_HR.shape[1]


@torch.library.custom_op("sidpipe::attention", mutates_args=())
def _forward_op(
    qkv: list[Tensor],
    bias: Tensor | None,
    starts_q: Tensor,
    starts_k: Tensor,
    lengths_k: Tensor,
    classes: Tensor,
    positions: Tensor | None,
    seed: Tensor,
    longest_q: int,
    longest_k: int,
    reach: int,
    causal: bool,
    dropout: float,
    mass: int,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = separate(qkv)
    T, H, D = q.shape
    bias = with_reach(bias, max(longest_q, longest_k, reach))
    o, lse = q.new_empty(T, H, D), q.new_empty(T, H, dtype=torch.float32)
    mass_SH = torch.zeros(k.shape[0] if mass else 0, H, device=q.device, dtype=torch.float32)
    launches = launches_for(q, longest_k, FORWARD if longest_q > 16 else FEW_FORWARD)
    arguments = (
        q,
        k,
        v,
        o,
        lse,
        mass_SH,
        lse if bias is None else bias,
        starts_q,
        starts_k,
        lengths_k,
        classes,
        starts_q if positions is None else positions,
        seed,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        int(dropout * 2**32),
        1 / (1 - dropout),
        H,
        _columns(bias),
        T,
        len(lengths_k),
    )
    launch_all(
        forward_kernel,
        launches,
        [arguments] * len(launches),
        [
            {
                "MASS": mass > 0,
                "MASS_DROPPED": mass & AFTER_DROPOUT > 0,
                "MASS_PADDED": mass & PADDED_QUERIES > 0,
                **_options(q, bias, positions, causal, dropout, launch),
            }
            for launch in launches
        ],
    )
    return o, lse, mass_SH


@_forward_op.register_fake
def _(
    qkv,
    bias,
    starts_q,
    starts_k,
    lengths_k,
    classes,
    positions,
    seed,
    longest_q,
    longest_k,
    reach,
    causal,
    dropout,
    mass,
):  # type: ignore[no-untyped-def]
    q, k, _ = separate(qkv)
    T, H, D = q.shape
    return (
        q.new_empty(T, H, D),
        q.new_empty(T, H, dtype=torch.float32),
        q.new_empty(k.shape[0] if mass else 0, H, dtype=torch.float32),
    )


@torch.library.custom_op("sidpipe::attention_backward", mutates_args=())
def _backward_op(
    do: Tensor,
    qkv: list[Tensor],
    o: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    starts_q: Tensor,
    starts_k: Tensor,
    lengths_k: Tensor,
    classes: Tensor,
    positions: Tensor | None,
    seed: Tensor,
    longest_q: int,
    longest_k: int,
    reach: int,
    causal: bool,
    dropout: float,
) -> tuple[list[Tensor], Tensor]:
    q, k, v = separate(qkv)
    H, D = q.shape[1:]
    gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in qkv]
    dq, dk, dv = separate(gradients)
    wide = with_reach(bias, max(longest_q, longest_k, reach))
    launches = launches_for(q, longest_k, BACKWARD if longest_q > 16 else FEW_BACKWARD)
    side = max(longest_q, reach)
    # Each program's sums of dS: by relative distance, or where tokens were pruned by place.
    programs = [launch.programs if bias is not None else 0 for launch in launches]
    sums = torch.zeros(sum(programs), H, *((_columns(wide),) if positions is None else (side, side)), device=q.device)
    # Rows of dq that meet several key tiles are added up here.
    partials = [
        q.new_empty(0 if launch.one_key_tile else launch.programs, H, side, D, dtype=torch.float32)
        for launch in launches
    ]
    arguments = [
        (
            q,
            k,
            v,
            o,
            do,
            lse,
            lse if wide is None else wide,
            dq,
            dk,
            dv,
            program_sums,
            partial,
            starts_q,
            starts_k,
            lengths_k,
            classes,
            starts_q if positions is None else positions,
            seed,
            q.stride(0),
            k.stride(0),
            v.stride(0),
            dq.stride(0),
            dk.stride(0),
            int(dropout * 2**32),
            1 / (1 - dropout),
            H,
            _columns(wide),
            len(q),
            len(k),
            len(lengths_k),
            side,
        )
        for program_sums, partial in zip(sums.split(programs), partials, strict=True)
    ]
    launch_all(
        backward_kernel,
        launches,
        arguments,
        [
            {"ONE_KEY_TILE": launch.one_key_tile, **_options(q, bias, positions, causal, dropout, launch)}
            for launch in launches
        ],
    )
    return gradients, _bias_gradient(sums, bias, positions)


def _bias_gradient(sums: Tensor, bias_HR: Tensor | None, positions: Tensor | None) -> Tensor:
    """[H, R], from what the programs hold."""
    if bias_HR is None:
        return sums.new_empty(sums.shape[1], 1)
    if positions is None:
        return sums.sum(0).narrow(1, (sums.shape[2] - bias_HR.shape[1]) // 2, bias_HR.shape[1]).contiguous()
    dbias = torch.zeros_like(bias_HR, dtype=torch.float32)
    add_diagonals(dbias, sums.sum(0))
    return dbias


@_backward_op.register_fake
def _(
    do,
    qkv,
    o,
    lse,
    bias,
    starts_q,
    starts_k,
    lengths_k,
    classes,
    positions,
    seed,
    longest_q,
    longest_k,
    reach,
    causal,
    dropout,
):  # type: ignore[no-untyped-def]
    return [x.new_empty(x.shape) for x in qkv], do.new_empty(do.shape[1], _columns(bias), dtype=torch.float32)


def _keep_for_backward(ctx, inputs, output):  # type: ignore[no-untyped-def]
    qkv, bias, *where, longest_q, longest_k, reach, causal, dropout, _ = inputs
    ctx.save_for_backward(*output[:2], bias, *where, *qkv)
    ctx.options = longest_q, longest_k, reach, causal, dropout
    ctx.mark_non_differentiable(output[1], output[2])


def _gradients(ctx, do, _lse, _mass):  # type: ignore[no-untyped-def]
    o, lse, bias, *where = ctx.saved_tensors[:9]
    dqkv, dbias = _backward_op(do.contiguous(), list(ctx.saved_tensors[9:]), o, lse, bias, *where, *ctx.options)
    return dqkv, None if bias is None else dbias, *[None] * 12


_forward_op.register_autograd(_gradients, setup_context=_keep_for_backward)
