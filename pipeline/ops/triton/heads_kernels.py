"""Compute the logits of all levels, their gradients, and cross-entropies in Triton; heads.py launches these kernels.

A step has few windows for a GPU: torch would run some eighty kernels of a few microseconds each, for each level a
product, a softmax, a loss, and the gradients of all three. Here each kernel serves all levels.

Shape legend: W windows, L levels, V codes of one level, d width of the model; BM rows (windows), BN columns (codes or
d) and BK of the inner width make a tile; BV (a power of two) columns hold V.
"""
# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def _rows(x_ptr, stride, first, last, start, width, BM: tl.constexpr, BK: tl.constexpr):
    """Load BM rows from `first` on and BK columns from `start` on; zeros from row `last` and column `width` on."""
    m, k = first + tl.arange(0, BM)[:, None], start + tl.arange(0, BK)[None, :]
    return tl.load(x_ptr + m.to(tl.int64) * stride + k, mask=(m < last) & (k < width), other=0.0)


@triton.jit
def _store(x_ptr, stride, x, first, rows, start, width, BM: tl.constexpr, BN: tl.constexpr):
    m, n = first + tl.arange(0, BM)[:, None], start + tl.arange(0, BN)[None, :]
    tl.store(x_ptr + m.to(tl.int64) * stride + n, x, mask=(m < rows) & (n < width))


@triton.jit(do_not_specialize=["rows"])
def logits_kernel(
    h_ptr,
    weight_ptrs,
    logits_ptrs,
    rows,
    d,
    WIDTHS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Write logits [W, V] of each level: states [W, L, d] times weights [V, d]. Programs: rows, levels, columns."""
    first, start = tl.program_id(0) * BM, tl.program_id(2) * BN
    for level in tl.static_range(len(WIDTHS)):
        if tl.program_id(1) == level and start < WIDTHS[level]:
            out = tl.zeros([BM, BN], tl.float32)
            for k in range(0, d, BK):
                h = _rows(h_ptr + level * d, len(WIDTHS) * d, first, rows, k, d, BM, BK)
                weight = _rows(weight_ptrs[level], d, start, WIDTHS[level], k, d, BN, BK)
                out = tl.dot(h, tl.trans(weight), out, input_precision=PRECISION)
            _store(logits_ptrs[level], WIDTHS[level], out, first, rows, start, WIDTHS[level], BM, BN)


@triton.jit(do_not_specialize=["rows"])
def states_gradient_kernel(
    dlogits_ptrs,
    weight_ptrs,
    dh_ptr,
    rows,
    d,
    WIDTHS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Write the gradient of the states, [W, L, d]. Programs: rows, levels, columns."""
    first, start = tl.program_id(0) * BM, tl.program_id(2) * BN
    for level in tl.static_range(len(WIDTHS)):
        if tl.program_id(1) == level:
            out = tl.zeros([BM, BN], tl.float32)
            for k in range(0, WIDTHS[level], BK):
                dlogits = _rows(dlogits_ptrs[level], WIDTHS[level], first, rows, k, WIDTHS[level], BM, BK)
                weight = _rows(weight_ptrs[level], d, k, WIDTHS[level], start, d, BK, BN)
                out = tl.dot(dlogits, weight, out, input_precision=PRECISION)
            _store(dh_ptr + level * d, len(WIDTHS) * d, out, first, rows, start, d, BM, BN)


@triton.jit(do_not_specialize=["rows", "stretch"])
def weights_gradient_kernel(
    dlogits_ptrs,
    h_ptr,
    sums_ptr,
    rows,
    stretch,
    d,
    WIDTHS: tl.constexpr,
    FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Write the sums of a stretch of rows for the weights of all levels, [stretches, V of all levels, d].

    Programs: tiles of codes, levels, stretches; a program computes all d columns of its codes, BN at a time.
    """
    code, begin = tl.program_id(0) * BM, tl.program_id(2) * stretch
    end = tl.minimum(begin + stretch, rows)
    codes: tl.constexpr = FIRST[len(WIDTHS)]
    for level in tl.static_range(len(WIDTHS)):
        if tl.program_id(1) == level and code < WIDTHS[level]:
            to = sums_ptr + (tl.program_id(2).to(tl.int64) * codes + FIRST[level]) * d
            for start in range(0, d, BN):
                out = tl.zeros([BM, BN], tl.float32)
                for row in range(begin, end, BK):
                    dlogits = _rows(dlogits_ptrs[level], WIDTHS[level], row, end, code, WIDTHS[level], BK, BM)
                    h = _rows(h_ptr + level * d, len(WIDTHS) * d, row, end, start, d, BK, BN)
                    out = tl.dot(tl.trans(dlogits), h, out, input_precision=PRECISION)
                _store(to, d, out, code, WIDTHS[level], start, d, BM, BN)


@triton.jit(do_not_specialize=["rows"])
def cross_entropy_kernel(
    logits_ptrs,
    codes_ptr,
    weights_ptr,
    lse_ptr,
    loss_ptr,
    scores_ptr,
    rows,
    SCORE: tl.constexpr,
    WIDTHS: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
):
    """Write for each row the sum of its levels' cross-entropies, [W], and the log-sum-exp of each level, [L, W].

    With a SCORE the cross-entropies are weighed, [W, L], and the score of each level is written too, [L, W]: its
    entropy, or its cross-entropy.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    real = m < rows
    loss = tl.zeros([BM], tl.float32)
    for level in tl.static_range(len(WIDTHS)):
        v = tl.arange(0, BV)[None, :]
        at = logits_ptrs[level] + m.to(tl.int64)[:, None] * WIDTHS[level] + v
        x = tl.load(at, mask=real[:, None] & (v < WIDTHS[level]), other=float("-inf"))
        top = tl.where(real, tl.max(x, 1), 0.0)
        lse = top + tl.log(tl.sum(tl.exp(x - top[:, None]), 1))
        code = tl.load(codes_ptr + m.to(tl.int64) * len(WIDTHS) + level, mask=real, other=0)
        own = lse - tl.sum(tl.where(v == code[:, None], x, 0.0), 1)
        if SCORE is not None:
            score = own
            if SCORE == "entropy":
                logp = x - lse[:, None]
                score = -tl.sum(tl.where(v < WIDTHS[level], tl.exp(logp) * logp, 0.0), 1)
            tl.store(scores_ptr + level * rows + m, tl.maximum(score, 0.0), mask=real)
            own *= tl.load(weights_ptr + m.to(tl.int64) * len(WIDTHS) + level, mask=real, other=0.0)
        loss += own
        tl.store(lse_ptr + level * rows + m, lse, mask=real)
    tl.store(loss_ptr + m, loss, mask=real)


@triton.jit(do_not_specialize=["rows"])
def cross_entropy_gradient_kernel(
    logits_ptrs,
    codes_ptr,
    weights_ptr,
    lse_ptr,
    dloss_ptr,
    dlogits_ptrs,
    rows,
    stride,
    WEIGHED: tl.constexpr,
    WIDTHS: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
):
    """Write the gradients of the logits of all levels; `stride` is that of `dloss`. Programs: rows, levels."""
    m, v = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BV)[None, :]
    real = m < rows
    dloss = tl.load(dloss_ptr + m.to(tl.int64) * stride, mask=real, other=0.0)
    for level in tl.static_range(len(WIDTHS)):
        if tl.program_id(1) == level:
            at = m.to(tl.int64)[:, None] * WIDTHS[level] + v
            here = real[:, None] & (v < WIDTHS[level])
            x = tl.load(logits_ptrs[level] + at, mask=here, other=float("-inf"))
            lse = tl.load(lse_ptr + level * rows + m, mask=real, other=0.0)
            code = tl.load(codes_ptr + m.to(tl.int64) * len(WIDTHS) + level, mask=real, other=0)
            down = dloss
            if WEIGHED:
                down *= tl.load(weights_ptr + m.to(tl.int64) * len(WIDTHS) + level, mask=real, other=0.0)
            dx = (tl.exp(x - lse[:, None]) - (v == code[:, None]).to(tl.float32)) * down[:, None]
            tl.store(dlogits_ptrs[level] + at, dx, mask=here)
