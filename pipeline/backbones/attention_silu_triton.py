"""HSTU's attention (attention_silu.py) as Triton kernels, forward and backward; no attention map is ever stored.

As in attention_triton.py a program walks over whole sequences of one class of lengths, shares nothing with others and
adds nothing atomically, so that equal inputs give equal bits. Pointwise weights need no running maximum: a row's
divisor (how many keys it sees, or for softplus the sum of its weights) is applied to the finished row.

The gradient of the position bias is taken as there, by diagonals. That of the time bias is a histogram of dS: for each
tile the program sums dS bucket by bucket (the first, then from the least to the largest other in the tile: where times
are days, most are empty) into one number per bucket that it keeps for all its sequences.

Written for Hopper. `attention_silu.reference_pointwise` is the oracle.

Shape legend: T positions of all sequences, H heads, D head width, R relative distances, B time buckets.
"""

from typing import cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.backbones.attention_kernels import dot
from pipeline.backbones.attention_silu import BUCKET_WIDTH, EPSILON, TIME_BUCKETS, Kind
from pipeline.backbones.attention_triton import Spans
from pipeline.backbones.launches import Launch, Tile, add_diagonals, launch_all, launches_for, with_reach
from pipeline.backbones.sequences import Times

# What measured best on an H200, by class of lengths
FORWARD = (Tile(16, 16, 1, 16), Tile(32, 32, 2, 8), Tile(64, 64, 4, 8), Tile(64, 128, 4, 8), Tile(64, 64, 4, 4))
BACKWARD = (*FORWARD[:3], Tile(32, 128, 4, 8), FORWARD[4])
WIDTH, LAST_BUCKET, SMALL = tl.constexpr(BUCKET_WIDTH), tl.constexpr(TIME_BUCKETS - 1), tl.constexpr(EPSILON)


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
    """As `attention_silu.pointwise_attention`, with the position bias by distance: column R // 2 + d is the bias of key
    position minus query position d.
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


# ---------------------------------------------------------------------------------------------------- kernels
# mypy: disable-error-code="no-untyped-def"


@triton.jit
def _score(
    q, k, bias_ptr, time_bias_ptr, h, m, n, asked, happened, length, H, R, TIMED: tl.constexpr, EXACT: tl.constexpr
):
    """(biased scores, time buckets, where the query sees the key) of one tile."""
    seen = (n[None, :] < length) & (n[None, :] <= m[:, None])
    s = dot(q, tl.trans(k), EXACT) + tl.load(bias_ptr + h * R + R // 2 - m[:, None] + n[None, :])
    bucket = tl.zeros(s.shape, tl.int32)
    if TIMED:
        passed = tl.maximum(asked[:, None] - happened[None, :], 1)
        bucket = tl.minimum((tl.log(passed.to(tl.float32)) / WIDTH).to(tl.int32), LAST_BUCKET)
        s += tl.load(time_bias_ptr + bucket * H + h)
    return s, bucket, seen


@triton.jit
def _activation(s, SILU: tl.constexpr):
    if SILU:
        return s * tl.sigmoid(s)
    x = tl.exp(-tl.abs(s))
    return tl.maximum(s, 0.0) + tl.where(x < 1e-3, x * (1.0 - 0.5 * x), tl.log(1.0 + x))  # 1 + x would round x away


@triton.jit
def _slope(s, SILU: tl.constexpr):
    slope = tl.sigmoid(s)
    if SILU:
        slope = slope * (1.0 + s * (1.0 - slope))
    return slope


@triton.jit
def _forward(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    divisor_ptr,
    bias_ptr,
    time_bias_ptr,
    asked_ptr,
    happened_ptr,
    starts_ptr,
    lengths_ptr,
    class_ptr,
    q_t,
    k_t,
    v_t,
    H,
    R,
    CLASS: tl.constexpr,
    TIMED: tl.constexpr,
    SILU: tl.constexpr,
    EXACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
):
    h, j, d = tl.program_id(1), tl.arange(0, BN), tl.arange(0, BD)
    for w in range(tl.load(class_ptr + CLASS) + tl.program_id(0), tl.load(class_ptr + CLASS + 1), tl.num_programs(0)):
        first, length = tl.load(starts_ptr + w), tl.load(lengths_ptr + w)
        for query_start in range(0, length, BM):
            m = query_start + tl.arange(0, BM)
            real_q = (m[:, None] < length) & (d[None, :] < D)
            rows = (first + m[:, None]).to(tl.int64)
            q = tl.load(q_ptr + rows * q_t + h * D + d[None, :], mask=real_q, other=0.0)
            asked = tl.load(asked_ptr + first + m, mask=m < length, other=0) if TIMED else m
            o, total = tl.zeros([BM, BD], tl.float32), tl.zeros([BM], tl.float32)
            for key_start in range(0, tl.minimum(query_start + BM, length), BN):  # later keys are not seen
                n = key_start + j
                real_k = (n[:, None] < length) & (d[None, :] < D)
                keys = (first + n[:, None]).to(tl.int64)
                k = tl.load(k_ptr + keys * k_t + h * D + d[None, :], mask=real_k, other=0.0)
                v = tl.load(v_ptr + keys * v_t + h * D + d[None, :], mask=real_k, other=0.0)
                happened = tl.load(happened_ptr + first + n, mask=n < length, other=0) if TIMED else n
                s, _, seen = _score(q, k, bias_ptr, time_bias_ptr, h, m, n, asked, happened, length, H, R, TIMED, EXACT)
                p = tl.where(seen, _activation(s, SILU), 0.0)
                total += tl.sum(p, 1)
                o += dot(p.to(v.dtype), v, EXACT)
            divisor = (m + 1).to(tl.float32) if SILU else total + SMALL
            tl.store(divisor_ptr + (first + m) * H + h, divisor, mask=m < length)
            o = o / divisor[:, None]
            tl.store(o_ptr + rows * (H * D) + h * D + d[None, :], o.to(o_ptr.dtype.element_ty), mask=real_q)


@triton.jit
def _backward(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    do_ptr,
    divisor_ptr,
    bias_ptr,
    time_bias_ptr,
    asked_ptr,
    happened_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    slab_ptr,
    time_slab_ptr,
    starts_ptr,
    lengths_ptr,
    class_ptr,
    q_t,
    k_t,
    v_t,
    H,
    R,
    side,
    CLASS: tl.constexpr,
    TIMED: tl.constexpr,
    SILU: tl.constexpr,
    EXACT: tl.constexpr,
    ONE_KEY_TILE: tl.constexpr,
    ONE_TILE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    B: tl.constexpr,
):
    h, j, d, i = tl.program_id(1), tl.arange(0, BN), tl.arange(0, BD), tl.arange(0, BM)
    buckets, time_sum = tl.arange(0, B), tl.zeros([B], tl.float32)
    ds_sum = tl.zeros([BM, BN], tl.float32)
    slab = slab_ptr + (tl.program_id(0) * H + h).to(tl.int64) * side * side
    for w in range(tl.load(class_ptr + CLASS) + tl.program_id(0), tl.load(class_ptr + CLASS + 1), tl.num_programs(0)):
        first, length = tl.load(starts_ptr + w), tl.load(lengths_ptr + w)
        for key_start in range(0, length, BN):
            n = key_start + j
            real_k = (n[:, None] < length) & (d[None, :] < D)
            keys = (first + n[:, None]).to(tl.int64)
            k = tl.load(k_ptr + keys * k_t + h * D + d[None, :], mask=real_k, other=0.0)
            v = tl.load(v_ptr + keys * v_t + h * D + d[None, :], mask=real_k, other=0.0)
            happened = tl.load(happened_ptr + first + n, mask=n < length, other=0) if TIMED else n
            dk, dv = tl.zeros([BN, BD], tl.float32), tl.zeros([BN, BD], tl.float32)
            for query_start in range(key_start // BM * BM, length, BM):  # earlier queries do not see these keys
                m = query_start + i
                real_q = (m[:, None] < length) & (d[None, :] < D)
                rows = (first + m[:, None]).to(tl.int64)
                q = tl.load(q_ptr + rows * q_t + h * D + d[None, :], mask=real_q, other=0.0)
                do = tl.load(do_ptr + rows * (H * D) + h * D + d[None, :], mask=real_q, other=0.0)
                asked = tl.load(asked_ptr + first + m, mask=m < length, other=0) if TIMED else m
                divisor = tl.load(divisor_ptr + (first + m) * H + h, mask=m < length, other=1.0)
                s, bucket, seen = _score(
                    q, k, bias_ptr, time_bias_ptr, h, m, n, asked, happened, length, H, R, TIMED, EXACT
                )
                dp = dot(do, tl.trans(v), EXACT)
                if not SILU:  # the divisor depends on the scores too
                    o = tl.load(o_ptr + rows * (H * D) + h * D + d[None, :], mask=real_q, other=0.0)
                    dp -= tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)[:, None]
                here = seen & (m[:, None] < length)
                p = tl.where(here, _activation(s, SILU) / divisor[:, None], 0.0)
                ds = tl.where(here, dp * _slope(s, SILU) / divisor[:, None], 0.0)
                dv += dot(tl.trans(p.to(v.dtype)), do, EXACT)
                dk += dot(tl.trans(ds.to(q.dtype)), q, EXACT)
                dq = dot(ds.to(k.dtype), k, EXACT)
                dq_at = dq_ptr + rows * (H * D) + h * D + d[None, :]
                if not ONE_KEY_TILE:  # this program alone adds to these rows
                    dq += tl.load(dq_at, mask=real_q, other=0.0)
                    tl.debug_barrier()
                tl.store(dq_at, dq.to(dq_ptr.dtype.element_ty), mask=real_q)
                if TIMED:  # dS is 0 where the query does not see the key
                    bucket = tl.where(here, bucket, 0)
                    time_sum += tl.where(buckets == 0, tl.sum(tl.sum(tl.where(bucket == 0, ds, 0.0), 1), 0), 0.0)
                    for b in range(tl.min(tl.where(bucket > 0, bucket, B)), tl.max(bucket) + 1):
                        in_bucket = tl.sum(tl.sum(tl.where(bucket == b, ds, 0.0), 1), 0)
                        time_sum += tl.where(buckets == b, in_bucket, 0.0)
                if ONE_TILE:
                    ds_sum += ds
                else:  # and to this slab
                    spot = slab + m[:, None] * side + n[None, :]
                    ds += tl.load(spot, mask=here, other=0.0)
                    tl.debug_barrier()
                    tl.store(spot, ds, mask=here)
            at = keys * (H * D) + h * D + d[None, :]
            tl.store(dk_ptr + at, dk.to(dk_ptr.dtype.element_ty), mask=real_k)
            tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=real_k)
            tl.debug_barrier()
    if ONE_TILE:
        tl.store(slab + i[:, None] * side + j[None, :], ds_sum)
    if TIMED:
        tl.store(time_slab_ptr + (tl.program_id(0) * H + h) * B + buckets, time_sum)


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
        _forward,
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
        _backward,
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
