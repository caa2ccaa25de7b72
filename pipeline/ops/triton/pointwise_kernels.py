"""Compute HSTU's attention in Triton, forward, and backward with the gradients of both biases.

pointwise_attention.py launches these kernels and says how they work.

Shape legend: H heads, D head width, R relative distances, B time buckets, P columns of the table of buckets; BM queries
and BN keys make a tile, BD (a power of two) columns hold D; m and n are the positions of a tile's queries and keys in
their sequence, i and j those in the tile.
"""
# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from pipeline.ops.pointwise import BUCKET_WIDTH, EPSILON, TIME_BUCKETS
from pipeline.ops.triton.attention_kernels import dot

WIDTH = tl.constexpr(BUCKET_WIDTH)
LAST_BUCKET = tl.constexpr(TIME_BUCKETS - 1)
SMALL = tl.constexpr(EPSILON)


@triton.jit
def bucket_kernel(asked_ptr, happened_ptr, buckets_ptr, starts_ptr, lengths_ptr, P, BM: tl.constexpr, BN: tl.constexpr):
    """Write the time bucket of each query and the keys up to it, uint8 [T, P]. Programs: sequences, their tiles."""
    first, length = tl.load(starts_ptr + tl.program_id(0)), tl.load(lengths_ptr + tl.program_id(0))
    query_start = tl.program_id(1) * BM
    if query_start < length:
        m = query_start + tl.arange(0, BM)
        asked = tl.load(asked_ptr + first + m, mask=m < length, other=0)
        for key_start in range(0, tl.minimum(query_start + BM, length), BN):
            n = key_start + tl.arange(0, BN)
            happened = tl.load(happened_ptr + first + n, mask=n < length, other=0)
            elapsed = tl.maximum(asked[:, None] - happened[None, :], 1)
            bucket = tl.minimum((tl.log(elapsed.to(tl.float32)) / WIDTH).to(tl.int32), LAST_BUCKET)
            at = buckets_ptr + (first + m).to(tl.int64)[:, None] * P + n[None, :]
            tl.store(at, bucket.to(tl.uint8), mask=(m < length)[:, None])


@triton.jit
def _score(
    q,
    k,
    bias_ptr,
    time_bias_ptr,
    buckets_ptr,
    h,
    first,
    m,
    n,
    length,
    H,
    R,
    P,
    TIMED: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Return (biased scores, time buckets, where a query of the sequence sees the key) of one tile."""
    seen = (m[:, None] < length) & (n[None, :] <= m[:, None])
    s = dot(q, tl.trans(k), EXACT) + tl.load(bias_ptr + h * R + R // 2 - m[:, None] + n[None, :])
    bucket = tl.zeros(s.shape, tl.int32)
    if TIMED:
        at = buckets_ptr + (first + m).to(tl.int64)[:, None] * P + n[None, :]
        bucket = tl.load(at, mask=seen, other=0).to(tl.int32)
        s += tl.load(time_bias_ptr + bucket * H + h)
    return s, bucket, seen


@triton.jit
def _activation(s, SILU: tl.constexpr):
    """Compute SiLU or softplus of the scores."""
    if SILU:
        return s * tl.sigmoid(s)
    x = tl.exp(-tl.abs(s))
    return tl.maximum(s, 0.0) + tl.where(x < 1e-3, x * (1.0 - 0.5 * x), tl.log(1.0 + x))  # 1 + x would round x away


@triton.jit
def _slope(s, SILU: tl.constexpr):
    """Compute the derivative of `_activation`."""
    slope = tl.sigmoid(s)
    if SILU:
        slope = slope * (1.0 + s * (1.0 - slope))
    return slope


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    divisor_ptr,
    bias_ptr,
    time_bias_ptr,
    buckets_ptr,
    starts_ptr,
    lengths_ptr,
    class_ptr,
    q_t,
    k_t,
    v_t,
    H,
    R,
    P,
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
            o, total = tl.zeros([BM, BD], tl.float32), tl.zeros([BM], tl.float32)
            for key_start in range(0, tl.minimum(query_start + BM, length), BN):  # later keys are not seen
                n = key_start + j
                real_k = (n[:, None] < length) & (d[None, :] < D)
                keys = (first + n[:, None]).to(tl.int64)
                k = tl.load(k_ptr + keys * k_t + h * D + d[None, :], mask=real_k, other=0.0)
                v = tl.load(v_ptr + keys * v_t + h * D + d[None, :], mask=real_k, other=0.0)
                s, _, seen = _score(
                    q, k, bias_ptr, time_bias_ptr, buckets_ptr, h, first, m, n, length, H, R, P, TIMED, EXACT
                )
                p = tl.where(seen, _activation(s, SILU), 0.0)
                total += tl.sum(p, 1)
                o += dot(p.to(v.dtype), v, EXACT)
            divisor = (m + 1).to(tl.float32) if SILU else total + SMALL
            tl.store(divisor_ptr + (first + m) * H + h, divisor, mask=m < length)
            o = o / divisor[:, None]
            tl.store(o_ptr + rows * (H * D) + h * D + d[None, :], o.to(o_ptr.dtype.element_ty), mask=real_q)


@triton.jit
def backward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    do_ptr,
    divisor_ptr,
    bias_ptr,
    time_bias_ptr,
    buckets_ptr,
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
    P,
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
            dk, dv = tl.zeros([BN, BD], tl.float32), tl.zeros([BN, BD], tl.float32)
            for query_start in range(key_start // BM * BM, length, BM):  # earlier queries do not see these keys
                m = query_start + i
                real_q = (m[:, None] < length) & (d[None, :] < D)
                rows = (first + m[:, None]).to(tl.int64)
                q = tl.load(q_ptr + rows * q_t + h * D + d[None, :], mask=real_q, other=0.0)
                do = tl.load(do_ptr + rows * (H * D) + h * D + d[None, :], mask=real_q, other=0.0)
                divisor = tl.load(divisor_ptr + (first + m) * H + h, mask=m < length, other=1.0)
                s, bucket, seen = _score(
                    q, k, bias_ptr, time_bias_ptr, buckets_ptr, h, first, m, n, length, H, R, P, TIMED, EXACT
                )
                dp = dot(do, tl.trans(v), EXACT)
                if not SILU:  # the divisor depends on the scores too
                    o = tl.load(o_ptr + rows * (H * D) + h * D + d[None, :], mask=real_q, other=0.0)
                    dp -= tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)[:, None]
                p = tl.where(seen, _activation(s, SILU) / divisor[:, None], 0.0)
                ds = tl.where(seen, dp * _slope(s, SILU) / divisor[:, None], 0.0)
                dv += dot(tl.trans(p.to(v.dtype)), do, EXACT)
                dk += dot(tl.trans(ds.to(q.dtype)), q, EXACT)
                dq = dot(ds.to(k.dtype), k, EXACT)
                dq_at = dq_ptr + rows * (H * D) + h * D + d[None, :]
                if not ONE_KEY_TILE:  # no other program adds to these rows
                    dq += tl.load(dq_at, mask=real_q, other=0.0)
                    tl.debug_barrier()
                tl.store(dq_at, dq.to(dq_ptr.dtype.element_ty), mask=real_q)
                if TIMED:  # the bucket is 0 where the query does not see the key, and so is dS
                    time_sum += tl.where(buckets == 0, tl.sum(tl.sum(tl.where(bucket == 0, ds, 0.0), 1), 0), 0.0)
                    for b in range(tl.min(tl.where(bucket > 0, bucket, B)), tl.max(bucket) + 1):
                        in_bucket = tl.sum(tl.sum(tl.where(bucket == b, ds, 0.0), 1), 0)
                        time_sum += tl.where(buckets == b, in_bucket, 0.0)
                if ONE_TILE:
                    ds_sum += ds
                else:  # no other program adds to this slab
                    spot = slab + m[:, None] * side + n[None, :]
                    ds += tl.load(spot, mask=seen, other=0.0)
                    tl.debug_barrier()
                    tl.store(spot, ds, mask=seen)
            at = keys * (H * D) + h * D + d[None, :]
            tl.store(dk_ptr + at, dk.to(dk_ptr.dtype.element_ty), mask=real_k)
            tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=real_k)
            tl.debug_barrier()
    if ONE_TILE:
        tl.store(slab + i[:, None] * side + j[None, :], ds_sum)
    if TIMED:
        tl.store(time_slab_ptr + (tl.program_id(0) * H + h) * B + buckets, time_sum)
