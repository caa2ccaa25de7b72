"""Compute the bucket of the time between each token and the tokens before it, once for all layers of a network.

Shape legend: T positions of all sequences, W sequences, P columns of the table of buckets; BM queries and BN keys make
a tile; m and n are the positions of a tile's queries and keys in their sequence.
"""
# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.ops.pointwise import BUCKET_WIDTH, TIME_BUCKETS, Times

WIDTH = tl.constexpr(BUCKET_WIDTH)
LAST_BUCKET = tl.constexpr(TIME_BUCKETS - 1)
TILE = 32  # queries and keys of a tile


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


def time_bucket_rows(times: Times, starts: Tensor, lengths_W: Tensor, columns: int) -> Tensor:
    """Return the time bucket of each query and key, uint8 [T, P].

    Column n of a token's row is for the n-th key of its sequence. Columns behind the query's own key hold anything.

    Args:
        starts: int32 [W + 1], where each sequence begins.
        lengths_W: int32, tokens of each sequence.
        columns: P, a multiple of 32 that is not below the longest sequence.
    """
    buckets_TP = torch.empty(len(times.asked_T), columns, device=starts.device, dtype=torch.uint8)
    bucket_kernel[len(lengths_W), columns // TILE](
        times.asked_T.contiguous(), times.happened_T.contiguous(), buckets_TP, starts, lengths_W, columns, TILE, TILE
    )
    return buckets_TP
