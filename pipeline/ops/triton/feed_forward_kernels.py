"""Compute a matrix product in Triton together with what follows it in a feed-forward; feed_forward.py launches this.

A product of M = 174,000 tokens writes 1,024 numbers for each: a second walk over them, for ReLU and dropout or for
their gradient, takes half as long as the product, or twice as long where the inputs are narrow. So both happen before a
tile leaves the chip.

Shape legend: M rows, K inputs and N outputs of the product; BM rows, BN columns and BK inputs make a tile.
"""
# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from pipeline.ops.triton.attention_kernels import not_dropped


@triton.jit
def _finish(
    x,
    y_desc,
    seed,
    threshold,
    scale,
    first_m,
    first_n,
    BACKWARD: tl.constexpr,
    DROPOUT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Apply ReLU and dropout to a tile, or take the gradient of both, whose outputs `y_desc` has."""
    if BACKWARD:  # an output is positive exactly where the input was, and was not dropped
        x = tl.where(y_desc.load([first_m, first_n]) > 0, x * scale, 0.0)
    else:
        x = tl.maximum(x, 0.0) * scale
        if DROPOUT:
            m, n = first_m + tl.arange(0, BM), first_n + tl.arange(0, BN)
            x = tl.where(not_dropped(seed, m[:, None], n[None, :], threshold), x, 0.0)
    return x


@triton.jit(do_not_specialize=["M"])
def product_kernel(
    a_desc,
    b_desc,
    c_desc,
    y_desc,
    seed_ptr,
    threshold,
    scale,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BACKWARD: tl.constexpr,
    DROPOUT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Write relu_dropout(a b^T) to c, with b [N, K]; or if BACKWARD, with b [K, N], a b where y > 0, times `scale`.

    A fixed number of programs walks over the tiles, those of the same rows one after another, so that the rows are read
    from memory once. The tensors are read and written by the chip's copy engine, which leaves out what is beyond them.
    """
    tiles_n = tl.cdiv(N, BN)
    half: tl.constexpr = BN // 2
    seed = tl.load(seed_ptr)
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, BM) * tiles_n, tl.num_programs(0), flatten=True):
        first_m, first_n = (tile // tiles_n) * BM, (tile % tiles_n) * BN
        total = tl.zeros([BM, BN], tl.float32)
        for first_k in range(0, K, BK):
            a = a_desc.load([first_m, first_k])
            b = b_desc.load([first_k, first_n]) if BACKWARD else b_desc.load([first_n, first_k]).T
            total = tl.dot(a, b, total, input_precision="ieee")
        # The tile leaves in two halves, side by side, which take half of the shared memory.
        left, right = tl.split(tl.permute(tl.reshape(total, (BM, 2, half)), (0, 2, 1)))
        left = _finish(left, y_desc, seed, threshold, scale, first_m, first_n, BACKWARD, DROPOUT, BM, half)
        c_desc.store([first_m, first_n], left.to(c_desc.dtype))
        right = _finish(right, y_desc, seed, threshold, scale, first_m, first_n + half, BACKWARD, DROPOUT, BM, half)
        c_desc.store([first_m, first_n + half], right.to(c_desc.dtype))
