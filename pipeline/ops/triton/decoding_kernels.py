"""Compute in Triton what beam search repeats for each layer and level; decoding.py launches these kernels.

Nothing is shared between programs and nothing is atomic: equal inputs give equal bits. Kernels are not specialised on
numbers that change with the batch: each value would be a compilation.

Shape legend: R rows (windows x beams), H heads, D head width, J decoder positions so far, Q queries of each window; BM
rows and BN columns make a tile, BK columns of the inner width are taken at once, BD (a power of two) columns hold D.
"""
# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x_ptr,
    weight_ptr,
    scale_ptr,
    residual_ptr,
    out_ptr,
    rows,
    outputs,
    width,
    eps,
    NORM: tl.constexpr,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Multiply x [rows, width] by the transposed weight [outputs, width], both rounded to TYPE."""
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)[:, None]
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    out = tl.zeros([BM, BN], tl.float32)
    squares = tl.zeros([BM], tl.float32)
    for start in range(0, width, BK):
        k = start + tl.arange(0, BK)
        x = tl.load(x_ptr + m * width + k[None, :], mask=(m < rows) & (k[None, :] < width), other=0.0)
        real = (n[None, :] < outputs) & (k[:, None] < width)
        weight = tl.load(weight_ptr + n[None, :] * width + k[:, None], mask=real, other=0.0)
        if NORM:  # rows are scaled after the product, when all of a row has been seen
            x = x.to(tl.float32)
            squares += tl.sum(x * x, 1)
            x = x * tl.load(scale_ptr + k, mask=k < width, other=0.0)[None, :]
        out = tl.dot(x.to(TYPE), weight.to(TYPE), out, input_precision=PRECISION)
    if NORM:
        out *= tl.rsqrt(squares / width + eps)[:, None]
    if RELU:
        out = tl.maximum(out, 0.0)
    here = m * outputs + n[None, :]
    real = (m < rows) & (n[None, :] < outputs)
    if RESIDUAL:
        out += tl.load(residual_ptr + here, mask=real, other=0.0)
    tl.store(out_ptr + here, out.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["R"])
def ancestors_kernel(
    q_ptr,
    k_ptrs,
    v_ptrs,
    rows_ptr,
    bias_ptr,
    out_ptr,
    R,
    H,
    stride,
    bias_h,
    bias_j,
    J: tl.constexpr,
    BM: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
):
    """Attend from one query per row and head to the keys of its row and of its ancestors, one of each level."""
    r, h, d = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1), tl.arange(0, BD)
    column, real = h * D + d[None, :], (r[:, None] < R) & (d[None, :] < D)
    q = tl.load(q_ptr + r.to(tl.int64)[:, None] * stride + column, mask=real, other=0.0).to(tl.float32)
    top, total = tl.full([BM], float("-inf"), tl.float32), tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, BD], tl.float32)
    # Softmax in one walk over the levels: when the running maximum `top` rises, the sums so far shrink.
    for j in tl.static_range(J):
        row = r.to(tl.int64)
        if j < J - 1:
            row = tl.load(rows_ptr + r * (J - 1) + j, mask=r < R, other=0)
        k = tl.load(k_ptrs[j] + row[:, None] * stride + column, mask=real, other=0.0).to(tl.float32)
        v = tl.load(v_ptrs[j] + row[:, None] * stride + column, mask=real, other=0.0).to(tl.float32)
        score = tl.sum(q * k, 1) + tl.load(bias_ptr + h * bias_h + j * bias_j)
        higher = tl.maximum(top, score)
        shrink, weight = tl.exp2((top - higher) * LOG2E), tl.exp2((score - higher) * LOG2E)
        total = total * shrink + weight
        out = out * shrink[:, None] + weight[:, None] * v
        top = higher
    out /= total[:, None]
    tl.store(out_ptr + r.to(tl.int64)[:, None] * (H * D) + column, out.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["Q", "distances"])
def window_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    bias_ptr,
    starts_q_ptr,
    starts_k_ptr,
    lengths_ptr,
    q_stride,
    k_stride,
    v_stride,
    Q,
    H,
    distances,
    EQUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
):
    """Attend from the queries of each window to its keys; it has Q queries if EQUAL, else those between the starts."""
    w, h, d = tl.program_id(0), tl.program_id(1), tl.arange(0, BD)
    m = tl.program_id(2) * BM + tl.arange(0, BM)
    first_q = w * Q if EQUAL else tl.load(starts_q_ptr + w)
    queries = Q if EQUAL else tl.load(starts_q_ptr + w + 1) - first_q
    first_k, length = tl.load(starts_k_ptr + w), tl.load(lengths_ptr + w)
    column, real = h * D + d[None, :], (m[:, None] < queries) & (d[None, :] < D)
    rows = (first_q + m[:, None]).to(tl.int64)
    q = tl.load(q_ptr + rows * q_stride + column, mask=real, other=0.0)
    top, total = tl.full([BM], float("-inf"), tl.float32), tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, BD], tl.float32)
    # Softmax in one walk over the keys, as above.
    for start in range(0, length, BN):
        n = start + tl.arange(0, BN)
        stored, keys = (n[:, None] < length) & (d[None, :] < D), (first_k + n[:, None]).to(tl.int64)
        k = tl.load(k_ptr + keys * k_stride + column, mask=stored, other=0.0)
        v = tl.load(v_ptr + keys * v_stride + column, mask=stored, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        seen = (n[None, :] < length) & (m[:, None] < queries)
        if HAS_BIAS:
            scores += tl.load(bias_ptr + h * distances + distances // 2 - m[:, None] + n[None, :], mask=seen, other=0.0)
        if CAUSAL:
            seen = seen & (n[None, :] <= m[:, None])
        scores = tl.where(seen, scores, -1e30)  # finite, since rows of no query are computed too
        higher = tl.maximum(top, tl.max(scores, 1))
        shrink, weights = tl.exp2((top - higher) * LOG2E), tl.exp2((scores - higher[:, None]) * LOG2E)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        top = higher
    out /= total[:, None]
    tl.store(out_ptr + rows * (H * D) + column, out.to(out_ptr.dtype.element_ty), mask=real)
