"""HSTU's attention (ops/pointwise_attention.py) on a GPU, forward and backward; no attention map is ever stored.

As in attention.py a program walks over whole sequences of one class of lengths, shares nothing with others and
adds nothing atomically, so that equal inputs give equal bits. Pointwise weights need no running maximum: a row's
divisor (how many keys it sees, or for softplus the sum of its weights) is applied to the finished row.

The gradient of the position bias is taken as there, by diagonals. That of the time bias is a histogram of dS: for each
tile the program sums dS bucket by bucket (the first, then from the least to the largest other in the tile: where times
are days, most are empty) into one number per bucket that it keeps for all its sequences.

Written for Hopper. `reference.reference_pointwise` is the oracle.

Shape legend: T positions of all sequences, H heads, D head width, R relative distances, B time buckets.
"""

from typing import cast

import torch
import triton
from torch import Tensor

from pipeline.ops.layout import Spans
from pipeline.ops.pointwise import TIME_BUCKETS, Kind, Times
from pipeline.ops.triton.launch import Launch, Tile, add_diagonals, launch_all, launches_for, with_reach
from pipeline.ops.triton.pointwise_kernels import backward_kernel, forward_kernel

# What measured best on an H200, by class of lengths
FORWARD = (Tile(16, 16, 1, 16), Tile(32, 32, 2, 8), Tile(64, 64, 4, 8), Tile(64, 128, 4, 8), Tile(64, 64, 4, 4))
BACKWARD = (*FORWARD[:3], Tile(32, 128, 4, 8), FORWARD[4])


def triton_pointwise(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    spans: Spans,
    bias_HR: Tensor,
    times: Times | None,
    time_bias_BH: Tensor | None,
    kind: Kind,
) -> Tensor:
    """As `ops.pointwise_attention.pointwise_attention`, with the position bias by distance: column R // 2 + d is the
    bias of key position minus query position d.
    """
    asked, happened = (times.asked_T, times.happened_T) if times is not None else (None, None)
    return _pointwise_op(
        q_THD,
        k_THD,
        v_THD,
        bias_HR,
        time_bias_BH if times is not None else None,
        asked,
        happened,
        spans.starts_k,
        spans.lengths_k,
        spans.classes,
        spans.longest_k,
        kind == "silu",
    )[0]


# ---------------------------------------------------------------------------------------------------- launches


@torch.library.custom_op("sidpipe::pointwise", mutates_args=())
def _pointwise_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    time_bias: Tensor | None,
    asked: Tensor | None,
    happened: Tensor | None,
    starts: Tensor,
    lengths: Tensor,
    classes: Tensor,
    longest: int,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    T, H, D = q.shape
    reaching = cast(Tensor, with_reach(bias, longest))
    o = q.new_zeros(T, H, D)  # zeros: positions of no sequence must not hold noise
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
        _or(asked, starts),
        _or(happened, starts),
        starts,
        lengths,
        classes,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        H,
        reaching.shape[1],
    )
    launch_all(
        forward_kernel,
        launches,
        [arguments] * len(launches),
        [_options(q, time_bias, silu, launch, launch.warps) for launch in launches],
    )
    return o, divisor


@_pointwise_op.register_fake
def _(q, k, v, bias, time_bias, asked, happened, starts, lengths, classes, longest, silu):  # type: ignore[no-untyped-def]
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
    asked: Tensor | None,
    happened: Tensor | None,
    starts: Tensor,
    lengths: Tensor,
    classes: Tensor,
    longest: int,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    H, reaching = q.shape[1], cast(Tensor, with_reach(bias, longest))
    launches = launches_for(q, longest, BACKWARD)
    # Rows of dq are added to once per key tile, so they are float32 unless there is one.
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
            _or(asked, starts),
            _or(happened, starts),
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
            slab.shape[-1],
        )
        for slab, time_slab in zip(slabs, time_slabs, strict=True)
    ]
    launch_all(
        backward_kernel,
        launches,
        arguments,
        [  # with half the warps it would spill registers
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
def _(do, q, k, v, o, divisor, bias, time_bias, asked, happened, starts, lengths, classes, longest, silu):  # type: ignore[no-untyped-def]
    # Compiled code believes these types. Under autocast `bias` is bfloat16; the gradient of the time bias never is.
    timed = TIME_BUCKETS if time_bias is not None else 0
    return (
        *(x.new_empty(x.shape) for x in (q, k, v)),
        bias.new_empty(bias.shape),
        q.new_empty(timed, q.shape[1], dtype=torch.float32),
    )


def _make_slab(launch: Launch, q: Tensor, longest: int) -> Tensor:
    """Room for each program's sum of dS by place, [programs, H, side, side]."""
    side = min(launch.longest, -(-longest // launch.columns) * launch.columns)
    # A sum that fits one tile stays in registers, and is stored whole; others are added up here.
    make = torch.empty if launch.one_tile else torch.zeros
    return make(launch.programs, q.shape[1], side, side, device=q.device, dtype=torch.float32)


def _or(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """A kernel that does not read an argument still needs a pointer."""
    return instead if tensor is None else tensor


def _options(q: Tensor, time_bias: Tensor | None, silu: bool, launch: Launch, warps: int) -> dict[str, object]:
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


def _keep_for_backward(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, *rest, longest, silu = inputs
    ctx.save_for_backward(q, k, v, *output, *rest)
    ctx.options = longest, silu
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, do, _divisor):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    dq, dk, dv, dbias, dtime = _pointwise_backward_op(do.contiguous(), *saved, *ctx.options)
    return dq, dk, dv, dbias, None if saved[6] is None else dtime, *[None] * 7


_pointwise_op.register_autograd(_gradients, setup_context=_keep_for_backward)
