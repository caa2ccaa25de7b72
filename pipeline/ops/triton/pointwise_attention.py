"""Compute HSTU's attention (ops/pointwise_attention.py) on a GPU; no attention map is ever stored.

As in attention.py a program walks over whole sequences of one class of lengths, shares nothing with others and
adds nothing atomically, so that equal inputs give equal bits. Pointwise weights need no running maximum: a row's
divisor (how many keys it sees, or for softplus the sum of its weights) is applied to the finished row.

The buckets of times are the same for all layers and heads and for both passes. One kernel computes them once, a byte
for each pair of tokens (`time_bucket_rows`): T rows of at most 512 bytes.

The gradient of the position bias is summed along diagonals, as in attention.py. The gradient of the time bias is a
histogram of dS, the gradient of the scores: for each tile the program sums dS bucket by bucket (the first bucket, then
from the least to the largest other bucket in the tile: where times are days, most buckets are empty) into one number
per bucket, which it carries through all its sequences.

Written for Hopper. Tests compare with `reference.reference_pointwise`.

Shape legend: T positions of all sequences, H heads, D head width, R relative distances, B time buckets, P columns of
the table of buckets.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from pipeline.ops.layout import Spans
from pipeline.ops.pointwise import TIME_BUCKETS, Kind, Times
from pipeline.ops.triton.launch import Launch, Options, Tile, add_diagonals, launch_all, launches_for, with_reach
from pipeline.ops.triton.pointwise_kernels import backward_kernel, bucket_kernel, forward_kernel

# The tiles that measured best on an H200, by class of lengths
FORWARD = (Tile(16, 16, 1, 16), Tile(32, 32, 2, 8), Tile(64, 64, 4, 8), Tile(64, 128, 4, 8), Tile(64, 64, 4, 4))
BACKWARD = (*FORWARD[:3], Tile(32, 128, 4, 8), FORWARD[4])

BUCKET_TILE = 32  # queries and keys of a tile of the table of buckets


def triton_pointwise(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    spans: Spans,
    bias_HR: Tensor,
    buckets_TP: Tensor | None,
    time_bias_BH: Tensor | None,
    kind: Kind,
) -> Tensor:
    """Compute `ops.pointwise_attention.pointwise_attention`, with the position bias by distance.

    Args:
        bias_HR: column R // 2 + d is the bias where key position minus query position is d; R is odd.
        buckets_TP: as `time_bucket_rows` gives them; None where the layout is not timed.
        time_bias_BH: read only with `buckets_TP`.
    """
    o_THD: Tensor = _pointwise_op(
        q_THD,
        k_THD,
        v_THD,
        bias_HR,
        time_bias_BH if buckets_TP is not None else None,
        buckets_TP,
        spans.starts_k,
        spans.lengths_k,
        spans.classes,
        spans.longest_k,
        kind == "silu",
    )[0]
    return o_THD


def time_bucket_rows(times: Times, spans: Spans) -> Tensor:
    """Return the time bucket of each query and key, uint8 [T, P], once for all layers of a network.

    Column n of a token's row is for the n-th key of its sequence. Columns behind the query's own key hold anything, and
    P is the longest sequence, rounded up to whole tiles of this kernel.
    """
    columns = -(-spans.longest_k // BUCKET_TILE) * BUCKET_TILE
    buckets_TP = torch.empty(len(times.asked_T), columns, device=times.asked_T.device, dtype=torch.uint8)
    grid = (len(spans.lengths_k), columns // BUCKET_TILE)
    bucket_kernel[grid](
        times.asked_T.contiguous(),
        times.happened_T.contiguous(),
        buckets_TP,
        spans.starts_k,
        spans.lengths_k,
        columns,
        BUCKET_TILE,
        BUCKET_TILE,
    )
    return buckets_TP


# ---------------------------------------------------------------------------------------------------- launches


@torch.library.custom_op("sidpipe::pointwise", mutates_args=())
def _pointwise_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    time_bias: Tensor | None,
    buckets: Tensor | None,
    starts: Tensor,
    lengths: Tensor,
    classes: Tensor,
    longest: int,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    T, H, D = q.shape
    reaching = with_reach(bias, longest)
    o = q.new_zeros(T, H, D)  # zeros, since no program writes the positions of no sequence
    divisor = torch.ones(T, H, device=q.device, dtype=torch.float32)
    launches = launches_for(q, longest, FORWARD)
    arguments = (
        q,
        k,
        v,
        o,
        divisor,
        reaching,
        _or(time_bias, bias),
        _or(buckets, starts),
        starts,
        lengths,
        classes,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        H,
        reaching.shape[1],
        0 if buckets is None else buckets.shape[1],
    )
    launch_all(
        forward_kernel,
        launches,
        [arguments] * len(launches),
        [_options(q, time_bias, silu, launch, launch.warps) for launch in launches],
    )
    return o, divisor


@_pointwise_op.register_fake
def _forward_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    time_bias: Tensor | None,
    buckets: Tensor | None,
    starts: Tensor,
    lengths: Tensor,
    classes: Tensor,
    longest: int,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Return empty results of the right shapes and types, for torch.compile."""
    T, H, D = q.shape
    return q.new_empty(T, H, D), q.new_empty(T, H, dtype=torch.float32)


@torch.library.custom_op("sidpipe::pointwise_backward", mutates_args=())
def _pointwise_backward_op(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    divisor: Tensor,
    bias: Tensor,
    time_bias: Tensor | None,
    buckets: Tensor | None,
    starts: Tensor,
    lengths: Tensor,
    classes: Tensor,
    longest: int,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    H = q.shape[1]
    reaching = with_reach(bias, longest)
    launches = launches_for(q, longest, BACKWARD)
    # Each key tile adds to the rows of dq, so dq is float32 unless there is only one key tile.
    added = not all(launch.one_key_tile for launch in launches)
    dq = torch.zeros(q.shape, device=q.device, dtype=torch.float32 if added else q.dtype)
    dk, dv = (torch.zeros(x.shape, device=x.device, dtype=x.dtype) for x in (k, v))
    slabs = [_make_slab(launch, q, longest) for launch in launches]
    time_slabs = [
        torch.empty(launch.programs, H, TIME_BUCKETS, device=q.device, dtype=torch.float32) for launch in launches
    ]
    arguments = [
        (
            q,
            k,
            v,
            o,
            do,
            divisor,
            reaching,
            _or(time_bias, bias),
            _or(buckets, starts),
            dq,
            dk,
            dv,
            slab,
            time_slab,
            starts,
            lengths,
            classes,
            q.stride(0),
            k.stride(0),
            v.stride(0),
            H,
            reaching.shape[1],
            0 if buckets is None else buckets.shape[1],
            slab.shape[-1],
        )
        for slab, time_slab in zip(slabs, time_slabs, strict=True)
    ]
    launch_all(
        backward_kernel,
        launches,
        arguments,
        [  # with half as many warps the kernel would spill registers
            {
                "ONE_KEY_TILE": launch.one_key_tile,
                "ONE_TILE": launch.one_tile,
                "B": TIME_BUCKETS,
                **_options(q, time_bias, silu, launch, 2 * launch.warps),
            }
            for launch in launches
        ],
    )
    dbias = torch.zeros_like(bias, dtype=torch.float32)
    for slab in slabs:
        add_diagonals(dbias, slab.sum(0))
    timed = TIME_BUCKETS if time_bias is not None else 0
    return dq.to(q.dtype), dk, dv, dbias.to(bias.dtype), torch.cat(time_slabs).sum(0).T[:timed].contiguous()


@_pointwise_backward_op.register_fake
def _backward_shapes(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    divisor: Tensor,
    bias: Tensor,
    time_bias: Tensor | None,
    buckets: Tensor | None,
    starts: Tensor,
    lengths: Tensor,
    classes: Tensor,
    longest: int,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return empty results of the right shapes and types, for torch.compile.

    Compiled code believes these types. Under autocast `bias` is bfloat16; the gradient of the time bias never is.
    """
    timed = TIME_BUCKETS if time_bias is not None else 0
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        bias.new_empty(bias.shape),
        q.new_empty(timed, q.shape[1], dtype=torch.float32),
    )


def _make_slab(launch: Launch, q: Tensor, longest: int) -> Tensor:
    """Allocate each program's sum of dS by pair of positions, [programs, H, side, side]."""
    side = min(launch.longest, -(-longest // launch.columns) * launch.columns)
    # A sum that fits one tile stays in registers, and is stored whole; others are added up in the slab, from zero.
    make = torch.empty if launch.one_tile else torch.zeros
    return make(launch.programs, q.shape[1], side, side, device=q.device, dtype=torch.float32)


def _or(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """Return the tensor, or another one: a kernel that does not read an argument still needs a pointer."""
    return instead if tensor is None else tensor


def _options(q: Tensor, time_bias: Tensor | None, silu: bool, launch: Launch, warps: int) -> Options:
    """Return the constants that both kernels are compiled with."""
    return {
        "CLASS": launch.index,
        "TIMED": time_bias is not None,
        "SILU": silu,
        "EXACT": q.dtype == torch.float32,
        "BM": launch.rows,
        "BN": launch.columns,
        "D": q.shape[2],
        "BD": max(16, triton.next_power_of_2(q.shape[2])),
        "num_warps": warps,
        "num_stages": 1,
    }


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, *rest, longest, silu = inputs
    ctx.save_for_backward(q, k, v, *output, *rest)
    ctx.options = longest, silu
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, do: Tensor, _divisor: Tensor) -> tuple[Tensor | None, ...]:
    """Return a gradient for each argument of `_pointwise_op`: q, k, v, both biases, and None for the 6 others."""
    saved = ctx.saved_tensors
    dq, dk, dv, dbias, dtime = _pointwise_backward_op(do.contiguous(), *saved, *ctx.options)
    return dq, dk, dv, dbias, None if saved[6] is None else dtime, *[None] * 6


_pointwise_op.register_autograd(_gradients, setup_context=_save_for_backward)
