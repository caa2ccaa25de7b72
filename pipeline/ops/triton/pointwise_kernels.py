"""Compute HSTU's attention in Triton, forward, and backward with the gradients of both biases.

pointwise_attention.py launches these kernels and says how they work.

Shape legend: H heads, D head width, R relative distances, B time buckets, P columns of the table of buckets; BM queries
and BN keys make a tile, BD (a power of two) columns hold D; m and n are the positions of a tile's queries and keys in
their sequence, i and j those in the tile.

`tl.atomic_add` here sends a number to be added and does not wait for the sum. No two threads send to one address, so
that the order of a sum is the order in which its thread sends, and equal inputs give equal bits.
"""
# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from pipeline.ops.pointwise import EPSILON
from pipeline.ops.triton.attention_kernels import dot

SMALL = tl.constexpr(EPSILON)


@triton.jit
def _at(x_ptr, stride: tl.constexpr, t, D: tl.constexpr, BD: tl.constexpr, ALIGNED: tl.constexpr):
    """Return (pointers to the rows t, which columns are real); every row begins at a multiple of ALIGNED bytes."""
    d = tl.arange(0, BD)[None, :]
    return tl.multiple_of(x_ptr + t[:, None] * stride + d, (1, ALIGNED)), d < D


@triton.jit
def _rows(x_ptr, stride: tl.constexpr, t, length, D: tl.constexpr, BD: tl.constexpr, ALIGNED: tl.constexpr):
    """Load rows of a sequence's part of one head, zeros from row `length` and column D on."""
    at, column = _at(x_ptr, stride, t, D, BD, ALIGNED)
    return tl.load(at, mask=(t[:, None] < length) & column, other=0.0)


@triton.jit
def _store_rows(x_ptr, stride: tl.constexpr, t, length, x, D: tl.constexpr, BD: tl.constexpr, ALIGNED: tl.constexpr):
    at, column = _at(x_ptr, stride, t, D, BD, ALIGNED)
    tl.store(at, x.to(x_ptr.dtype.element_ty), mask=(t[:, None] < length) & column)


@triton.jit
def _pick(table, index):
    """Return table[index] of a tile; the table is one number for each of some neighbouring indices from 0 on."""
    flat = tl.reshape(index, [index.shape[0] * index.shape[1]])
    return tl.reshape(tl.gather(table, flat, 0), index.shape)


@triton.jit
def _score(
    q,
    k,
    bias_ptr,
    time_bias,
    bucket,
    corner,
    TIMED: tl.constexpr,
    EXACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Return the biased scores of a tile.

    bias_ptr points to a head's bias of distance 0, `time_bias` [B] is its bias by bucket, and `corner` is the distance
    of the tile's first query and key.
    """
    by_distance = tl.load(bias_ptr + (corner + 1 - BM) + tl.arange(0, BM + BN))
    s = dot(q, tl.trans(k), EXACT)
    s += _pick(by_distance, tl.arange(0, BN)[None, :] - tl.arange(0, BM)[:, None] + (BM - 1))
    if TIMED:
        s += _pick(time_bias, bucket)
    return s


@triton.jit
def _sigmoid(s, EXACT: tl.constexpr):
    """Compute the sigmoid; unless EXACT by the GPU's own functions, which take tiny numbers for 0."""
    if EXACT:
        return tl.sigmoid(s)
    return tl.inline_asm_elementwise(
        """{
        .reg .f32 x;
        mul.ftz.f32 x, $1, 0fBFB8AA3B;
        ex2.approx.ftz.f32 x, x;
        add.ftz.f32 x, x, 0f3F800000;
        rcp.approx.ftz.f32 $0, x;
        }""",
        "=f,f",
        [s],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _softplus(s):
    x = tl.exp(-tl.abs(s))
    return tl.maximum(s, 0.0) + tl.where(x < 1e-3, x * (1.0 - 0.5 * x), tl.log(1.0 + x))  # 1 + x would round x away


@triton.jit
def _in_bucket(ds, bucket, b, BM: tl.constexpr, GROUP: tl.constexpr):
    """Sum dS of a bucket over each GROUP of a tile's rows: [BM / GROUP]. A warp sums whole groups."""
    by_row = tl.sum(tl.where(bucket == b, ds, 0.0), 1)
    return tl.sum(tl.reshape(by_row, [BM // GROUP, GROUP]), 1)


@triton.jit
def _in_two(ds, bucket, b, BM: tl.constexpr, GROUP: tl.constexpr):
    """Return [BM / GROUP, 2] for the buckets b and b + 4."""
    return tl.join(_in_bucket(ds, bucket, b, BM, GROUP), _in_bucket(ds, bucket, b + 4, BM, GROUP))


@triton.jit
def _in_four(ds, bucket, b, BM: tl.constexpr, GROUP: tl.constexpr):
    """Return [BM / GROUP, 2, 2] for the buckets b, b + 2 | b + 4, b + 6."""
    return tl.join(_in_two(ds, bucket, b, BM, GROUP), _in_two(ds, bucket, b + 2, BM, GROUP))


@triton.jit
def _add_by_bucket(sums_ptr, ds, bucket, BM: tl.constexpr, B: tl.constexpr, GROUP: tl.constexpr):
    """Add dS of a tile to a program's sums [BM / GROUP, B], bucket by bucket.

    The first bucket, then from the least to the largest other bucket in the tile, eight at once: where times are days,
    most buckets are empty. The eights begin at the buckets 1, 9, 17 and so on, so that one thread sends all sums of a
    bucket.
    """
    g = tl.arange(0, BM // GROUP)
    tl.atomic_add(sums_ptr + g * B, _in_bucket(ds, bucket, 0, BM, GROUP), sem="relaxed")
    least = tl.min(tl.where(bucket > 0, bucket, B))
    for b in range(1 + (least - 1) // 8 * 8, tl.max(bucket) + 1, 8):
        eight = tl.join(_in_four(ds, bucket, b, BM, GROUP), _in_four(ds, bucket, b + 1, BM, GROUP))
        eight = tl.reshape(eight, [BM // GROUP, 8])
        column = b + tl.arange(0, 8)[None, :]
        tl.atomic_add(sums_ptr + g[:, None] * B + column, eight, mask=column < B, sem="relaxed")


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
    R,
    tiles,
    Q_T: tl.constexpr,
    K_T: tl.constexpr,
    V_T: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    CLASS: tl.constexpr,
    TIMED: tl.constexpr,
    SILU: tl.constexpr,
    EXACT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    B: tl.constexpr,
):
    """Compute one head's rows of the queries of some tiles; a sequence has at most `tiles` of them."""
    h, i, j = tl.program_id(1), tl.arange(0, BM), tl.arange(0, BN)
    bias_ptr += h * R + R // 2
    time_bias = tl.load(time_bias_ptr + h * B + tl.arange(0, B)) if TIMED else 0.0
    first_w, end_w = tl.load(class_ptr + CLASS), tl.load(class_ptr + CLASS + 1)
    for number in range(tl.program_id(0), (end_w - first_w) * tiles, tl.num_programs(0)):
        w, query_start = first_w + number // tiles, number % tiles * BM
        length = tl.load(lengths_ptr + w)
        if query_start < length:
            first = tl.load(starts_ptr + w).to(tl.int64)
            k_w, v_w = k_ptr + first * K_T + h * D, v_ptr + first * V_T + h * D
            m = query_start + i
            q = _rows(q_ptr + first * Q_T + h * D, Q_T, m, length, D, BD, ALIGNED)
            o, total = tl.zeros([BM, BD], tl.float32), tl.zeros([BM], tl.float32)
            for key_start in range(0, tl.minimum(query_start + BM, length), BN):  # later keys are not seen
                n = key_start + j
                k = _rows(k_w, K_T, n, length, D, BD, ALIGNED)
                v = _rows(v_w, V_T, n, length, D, BD, ALIGNED)
                seen = n[None, :] <= m[:, None]
                bucket = 0
                if TIMED:  # whole rows load faster; where a query does not see the key they hold anything
                    at = buckets_ptr + first * P + m[:, None] * P + n[None, :]
                    bucket = tl.where(seen, tl.load(at, mask=m[:, None] < length, other=0), 0).to(tl.int32)
                s = _score(q, k, bias_ptr, time_bias, bucket, key_start - query_start, TIMED, EXACT, BM, BN)
                p = tl.where(seen, s * _sigmoid(s, EXACT) if SILU else _softplus(s), 0.0)
                if not SILU:
                    total += tl.sum(p, 1)
                o = tl.dot(p.to(v.dtype), v, o, input_precision="ieee" if EXACT else "tf32")
            divisor = (m + 1).to(tl.float32) if SILU else total + SMALL
            if not SILU:
                tl.store(divisor_ptr + (first + m) * H + h, divisor, mask=m < length)
            o = o * (1.0 / divisor)[:, None]
            _store_rows(o_ptr + (first * H + h) * D, H * D, m, length, o, D, BD, ALIGNED)


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
    sums_ptr,
    time_sums_ptr,
    starts_ptr,
    lengths_ptr,
    class_ptr,
    R,
    tiles,
    Q_T: tl.constexpr,
    K_T: tl.constexpr,
    V_T: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    CLASS: tl.constexpr,
    TIMED: tl.constexpr,
    SILU: tl.constexpr,
    EXACT: tl.constexpr,
    ALIGNED: tl.constexpr,
    ONE_TILE: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    B: tl.constexpr,
):
    """Compute one head's gradients of some sequences; BM = BN, and a sequence has at most `tiles` tiles of keys."""
    h, i, j = tl.program_id(1), tl.arange(0, BM), tl.arange(0, BN)
    program = (tl.program_id(0) * H + h).to(tl.int64)
    bias_ptr += h * R + R // 2
    time_bias = tl.load(time_bias_ptr + h * B + tl.arange(0, B)) if TIMED else 0.0
    sums_ptr += program * tiles * (BM * BN)
    time_sums_ptr += program * (B * (BM // GROUP))
    ds_sum = tl.zeros([BM, BN], tl.float32)
    for w in range(tl.load(class_ptr + CLASS) + tl.program_id(0), tl.load(class_ptr + CLASS + 1), tl.num_programs(0)):
        first, length = tl.load(starts_ptr + w).to(tl.int64), tl.load(lengths_ptr + w)
        q_w, k_w, v_w = q_ptr + first * Q_T + h * D, k_ptr + first * K_T + h * D, v_ptr + first * V_T + h * D
        row = (first * H + h) * D  # of the sequence, in tensors [T, H, D]
        for key_start in range(0, length, BN):
            n = key_start + j
            k = _rows(k_w, K_T, n, length, D, BD, ALIGNED)
            v = _rows(v_w, V_T, n, length, D, BD, ALIGNED)
            dk, dv = tl.zeros([BN, BD], tl.float32), tl.zeros([BN, BD], tl.float32)
            for query_start in range(key_start, length, BM):  # earlier queries do not see these keys
                m = query_start + i
                q = _rows(q_w, Q_T, m, length, D, BD, ALIGNED)
                do = _rows(do_ptr + row, H * D, m, length, D, BD, ALIGNED)
                seen = (m[:, None] < length) & (n[None, :] <= m[:, None])
                bucket = 0
                if TIMED:
                    at = buckets_ptr + first * P + m[:, None] * P + n[None, :]
                    bucket = tl.where(seen, tl.load(at, mask=m[:, None] < length, other=0), 0).to(tl.int32)
                s = _score(q, k, bias_ptr, time_bias, bucket, key_start - query_start, TIMED, EXACT, BM, BN)
                dp = dot(do, tl.trans(v), EXACT)
                gate = _sigmoid(s, EXACT)
                if SILU:
                    p = s * gate
                    slope = gate + p * (1.0 - gate)
                    divisor = (m + 1).to(tl.float32)
                else:  # the divisor depends on the scores too
                    p, slope = _softplus(s), gate
                    divisor = tl.load(divisor_ptr + (first + m) * H + h, mask=m < length, other=1.0)
                    o = _rows(o_ptr + row, H * D, m, length, D, BD, ALIGNED)
                    dp -= tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)[:, None]
                share = (1.0 / divisor)[:, None]
                p = tl.where(seen, p * share, 0.0)
                ds = tl.where(seen, dp * slope * share, 0.0)
                dv += dot(tl.trans(p.to(v.dtype)), do, EXACT)
                dk += dot(tl.trans(ds.to(q.dtype)), q, EXACT)
                dq = dot(ds.to(k.dtype), k, EXACT)
                if ONE_TILE:
                    _store_rows(dq_ptr + row, H * D, m, length, dq, D, BD, ALIGNED)
                    ds_sum += ds
                else:
                    at, column = _at(dq_ptr + row, H * D, m, D, BD, ALIGNED)
                    tl.atomic_add(at, dq, mask=(m[:, None] < length) & column, sem="relaxed")
                    spot = sums_ptr + (query_start - key_start) * BN + i[:, None] * BN + j[None, :]
                    tl.atomic_add(spot, ds, sem="relaxed")
                if TIMED:  # the bucket is 0 where the query does not see the key, and so is dS
                    _add_by_bucket(time_sums_ptr, ds, bucket, BM, B, GROUP)
            _store_rows(dk_ptr + row, H * D, n, length, dk, D, BD, ALIGNED)
            _store_rows(dv_ptr + row, H * D, n, length, dv, D, BD, ALIGNED)
    if ONE_TILE:
        tl.store(sums_ptr + i[:, None] * BN + j[None, :], ds_sum)
