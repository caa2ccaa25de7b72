"""Compute HSTU's attention (ops/pointwise_attention.py) on a GPU; no attention map is ever stored.

Pointwise weights need no running maximum: a row's divisor (how many keys it sees, or for softplus the sum of its
weights) is applied to the finished row. Forward, a program computes tiles of queries. Backward, it walks over whole
sequences of one class of lengths, key tile by key tile, and shares nothing with others.

Three gradients are sums over tiles: of the queries, of the position bias and of the time bias. A program sends what a
tile adds to them, and does not wait (pointwise_kernels.py says why equal inputs give equal bits). The gradient of the
scores, dS, is summed for all tiles of one distance from the diagonal, and `add_diagonals` sums the diagonals of that.
For the time bias it is summed by bucket and group of rows.

Written for Hopper. Tests compare with `reference.reference_pointwise`.

Shape legend: T positions of all sequences, H heads, D head width, R relative distances, B time buckets, P columns of
the table of buckets, N queries, and keys, of a tile.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from pipeline.ops.layout import Spans
from pipeline.ops.pointwise import TIME_BUCKETS, Kind
from pipeline.ops.triton.launch import Launch, Options, Tile, add_diagonals, launch_all, launches_for, with_reach
from pipeline.ops.triton.pointwise_kernels import backward_kernel, forward_kernel

# By class of lengths. Tiles are square.
FORWARD = (Tile(16, 16, 1, 16), Tile(32, 32, 2, 8), Tile(64, 64, 4, 4), Tile(64, 64, 4, 4), Tile(64, 64, 4, 4))
BACKWARD = (Tile(16, 16, 1, 16), Tile(32, 32, 2, 8), Tile(32, 32, 2, 8), Tile(64, 64, 4, 4), Tile(64, 64, 4, 4))
GROUP = 16  # rows of a tile, summed in one warp, that have one sum of dS for each bucket
WORD = 16  # bytes that a thread loads at once where rows allow it


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
        buckets_TP: as time_bucket_kernel.py gives them; None where the layout is not timed.
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
    o = torch.zeros_like(q, memory_format=torch.contiguous_format)  # no program writes the positions of no sequence
    divisor = _divisors(q, silu)
    launches = launches_for(q, longest, FORWARD)
    scores = _scores_of(q, bias, time_bias, buckets, longest)
    arguments = [
        (q, k, v, o, divisor, *scores, starts, lengths, classes, *_sizes(scores, launch, longest))
        for launch in launches
    ]
    options = [_options((q, k, v), time_bias, buckets, silu, launch) for launch in launches]
    launch_all(forward_kernel, launches, arguments, options)
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
    return q.new_empty(q.shape), _divisors(q, silu)


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
    launches = launches_for(q, longest, BACKWARD)
    # The tiles of keys add to the rows of dq, so dq is float32 unless each sequence has only one.
    added = not all(launch.one_tile for launch in launches)
    dq = torch.zeros(q.shape, device=q.device, dtype=torch.float32 if added else q.dtype)
    dk, dv = (torch.zeros(x.shape, device=x.device, dtype=x.dtype) for x in (k, v))
    sums, time_sums = _make_sums(launches, q, longest, timed=time_bias is not None)
    scores = _scores_of(q, bias, time_bias, buckets, longest)
    arguments = [
        (
            q,
            k,
            v,
            o,
            do,
            divisor,
            *scores,
            dq,
            dk,
            dv,
            sums[number],
            time_sums[number],
            starts,
            lengths,
            classes,
            *_sizes(scores, launch, longest),
        )
        for number, launch in enumerate(launches)
    ]
    options = [
        _options((q, k, v, do), time_bias, buckets, silu, launch) | {"ONE_TILE": launch.one_tile, "GROUP": GROUP}
        for launch in launches
    ]
    launch_all(backward_kernel, launches, arguments, options)
    dbias = torch.zeros_like(bias, dtype=torch.float32)
    for part in sums:
        by_tiles_HGNN = part.sum(0)
        # Tiles of one distance lie side by side, the farthest first, so that a column's distance grows: [H, N, G N]
        add_diagonals(dbias, by_tiles_HGNN.flip(1).transpose(1, 2).flatten(2))
    dtime = sum((part.sum((0, 2)) for part in time_sums[1:]), time_sums[0].sum((0, 2))).T.contiguous()
    return dq.to(q.dtype), dk, dv, dbias.to(bias.dtype), dtime


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


def _divisors(q: Tensor, silu: bool) -> Tensor:
    """Allocate the divisor of each row and head, float32 [T, H]; that of SiLU is the row's number of keys: [0, H]."""
    return q.new_ones(0 if silu else q.shape[0], q.shape[1], dtype=torch.float32)


def _make_sums(launches: list[Launch], q: Tensor, longest: int, timed: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Allocate each program's sums of dS for both biases.

    They are zeros, [programs, H, tile distances, N, N] for each launch, and by bucket [programs, H, N / GROUP, B]. One
    piece of memory holds all, so that one kernel clears it.
    """
    shapes: list[tuple[int, ...]] = [
        (launch.programs, q.shape[1], _tiles(launch, longest), launch.rows, launch.columns) for launch in launches
    ]
    shapes += [(launch.programs, q.shape[1], launch.rows // GROUP, TIME_BUCKETS if timed else 0) for launch in launches]
    sizes = [math.prod(shape) for shape in shapes]
    cleared = torch.zeros(sum(sizes), device=q.device, dtype=torch.float32)
    parts = [part.view(shape) for part, shape in zip(cleared.split(sizes), shapes, strict=True)]
    return parts[: len(launches)], parts[len(launches) :]


def _tiles(launch: Launch, longest: int) -> int:
    """Return how many tiles of queries the longest sequence of a class has."""
    return -(-min(launch.longest, longest) // launch.rows)


def _scores_of(
    q: Tensor, bias: Tensor, time_bias: Tensor | None, buckets: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the kernels add to the scores: both biases by head, and the table of buckets.

    A kernel that does not read an argument still needs a pointer.
    """
    reaching = with_reach(bias, longest)
    if time_bias is None or buckets is None:
        return reaching, bias, q
    return reaching, time_bias.T.contiguous(), buckets


def _sizes(scores: tuple[Tensor, Tensor, Tensor], launch: Launch, longest: int) -> tuple[int, int]:
    """Return the sizes that change from batch to batch: distances of the bias, tiles of a sequence."""
    return scores[0].shape[1], _tiles(launch, longest)


def _options(
    rows: tuple[Tensor, ...], time_bias: Tensor | None, buckets: Tensor | None, silu: bool, launch: Launch
) -> Options:
    """Return the constants that both kernels are compiled with.

    Args:
        rows: q, k, v, and what else of the caller is loaded by rows, [T, H, D] each.
    """
    q, k, v, *_ = rows
    _, heads, width = q.shape
    size = q.element_size()
    addresses = (number for x in rows for number in (x.data_ptr(), x.stride(0) * size))
    return {
        "Q_T": q.stride(0),
        "K_T": k.stride(0),
        "V_T": v.stride(0),
        "H": heads,
        "P": 0 if buckets is None else buckets.shape[1],
        "CLASS": launch.index,
        "TIMED": time_bias is not None,
        "SILU": silu,
        "EXACT": q.dtype == torch.float32,
        "ALIGNED": math.gcd(WORD, width * size, *addresses),
        "BM": launch.rows,
        "BN": launch.columns,
        "D": width,
        "BD": max(16, triton.next_power_of_2(width)),
        "B": TIME_BUCKETS,
        "num_warps": launch.warps,
        "num_stages": 2,  # the next keys load while a tile is computed; only the forward loop allows it
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
