"""Sum the gradient of a table's rows on a GPU, in a fixed order.

torch sorts the indices of a look-up, of 64 bits, before it adds up their gradients: two dozen small kernels a step. For
a small table nothing is sorted here: a program multiplies the one-hot matrix of some rows by the gradients of a stretch
of tokens. In bfloat16 a gradient is three numbers that add up to its 24 bits, so that nothing is rounded before the
sum. For a larger one the indices are sorted in the least type that holds them, whose time goes with its bits, and a
program sums the tokens of one row.

Shape legend: T tokens, V rows of the table, d width of a row; BV rows, BT tokens and BD columns make a tile.
"""
# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

BV, BT, MOST_COLUMNS = 128, 64, 128
SORTED_BT = 32  # tokens that a program adds at once where indices are sorted


@triton.jit(do_not_specialize=["T", "stretch"])
def table_gradient_kernel(
    gradient_ptr,
    index_ptr,
    sums_ptr,
    T,
    stretch,
    V,
    D,
    SPLIT: tl.constexpr,
    BV: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    """Write the sums of one stretch of tokens, for BV rows and BD columns, to sums [stretches, V, D]."""
    v = tl.program_id(0) * BV + tl.arange(0, BV)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    first = tl.program_id(1) * stretch
    last = tl.minimum(first + stretch, T)
    total = tl.zeros([BV, BD], tl.float32)
    for start in range(first, last, BT):
        t = start + tl.arange(0, BT)
        index = tl.load(index_ptr + t, mask=t < last, other=-1).to(tl.int32)
        at = t.to(tl.int64)[:, None] * D + d[None, :]
        x = tl.load(gradient_ptr + at, mask=(t < last)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        hit = index[None, :] == v[:, None]
        if SPLIT:
            one_hot = hit.to(tl.bfloat16)
            high = x.to(tl.bfloat16)
            rest = x - high.to(tl.float32)
            middle = rest.to(tl.bfloat16)
            low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
            total = tl.dot(one_hot, high, total)
            total = tl.dot(one_hot, middle, total)
            total = tl.dot(one_hot, low, total)
        else:  # Triton's interpreter has no products of bfloat16
            total = tl.dot(hit.to(tl.float32), x, total, input_precision="ieee")
    to = sums_ptr + (tl.program_id(1).to(tl.int64) * V + v[:, None]) * D + d[None, :]
    tl.store(to, total, mask=(v < V)[:, None] & (d < D)[None, :])


def table_gradient(gradient_Td: Tensor, index_T: Tensor, rows: int) -> Tensor:
    """Return for each of `rows` rows the sum of the gradients of the tokens that took it, float32 [V, d].

    Args:
        gradient_Td: contiguous.
        index_T: int64, contiguous.
    """
    tokens, width = gradient_Td.shape
    columns = min(MOST_COLUMNS, max(16, triton.next_power_of_2(width)))
    blocks, parts = triton.cdiv(rows, BV), triton.cdiv(width, columns)
    chips = torch.cuda.get_device_properties(index_T.device).multi_processor_count if index_T.is_cuda else 2
    # Two programs for each multiprocessor; a stretch is whole tiles.
    stretches = max(1, min(triton.cdiv(tokens, BT), 2 * chips // (blocks * parts)))
    stretch = max(BT, triton.cdiv(triton.cdiv(tokens, stretches), BT) * BT)
    stretches = max(1, triton.cdiv(tokens, stretch))
    sums = torch.empty(stretches, rows, width, device=index_T.device, dtype=torch.float32)
    grid = (blocks, stretches, parts)
    table_gradient_kernel[grid](
        gradient_Td, index_T, sums, tokens, stretch, rows, width, index_T.is_cuda, BV, BT, columns, num_warps=8
    )
    return sums.sum(0)


@triton.jit
def sorted_gradient_kernel(gradient_ptr, order_ptr, bounds_ptr, sums_ptr, D, BT: tl.constexpr, BD: tl.constexpr):
    """Write the sum of one row's tokens, for BD columns, to sums [V, D]. Programs: rows, parts of the columns."""
    v, d = tl.program_id(0), tl.program_id(1) * BD + tl.arange(0, BD)
    total = tl.zeros([BT, BD], tl.float32)
    last = tl.load(bounds_ptr + v + 1)
    for start in range(tl.load(bounds_ptr + v), last, BT):
        i = start + tl.arange(0, BT)
        t = tl.load(order_ptr + i, mask=i < last, other=0)
        mask = (i < last)[:, None] & (d < D)[None, :]
        total += tl.load(gradient_ptr + t[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(sums_ptr + v.to(tl.int64) * D + d, tl.sum(total, 0), mask=d < D)


def sorted_table_gradient(gradient_Td: Tensor, index_T: Tensor, rows: int) -> Tensor:
    """Return what `table_gradient` returns, for a table of any size."""
    width = gradient_Td.shape[1]
    columns = min(MOST_COLUMNS, max(16, triton.next_power_of_2(width)))
    least = torch.int16 if rows < 2**15 else torch.int32 if rows < 2**31 else torch.int64
    index, order_T = index_T.to(least).sort(stable=True)
    bounds = torch.searchsorted(index, torch.arange(rows + 1, device=index.device, dtype=least))
    sums_Vd = torch.empty(rows, width, device=index.device, dtype=torch.float32)
    grid = (rows, triton.cdiv(width, columns))
    sorted_gradient_kernel[grid](gradient_Td, order_T, bounds, sums_Vd, width, SORTED_BT, columns, num_warps=4)
    return sums_Vd
