"""The kernels that choose a level's beams: the best children of each beam, then the best of these.

Shape legend: W windows, K beams, V codes of one level, C candidates.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**63) + 1)


@triton.jit
def _key(score, rank):
    """One integer in the order of the scores; of equal ones the lower rank is the larger key."""
    bits = score.to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.to(tl.int64) << 32) | (0x7FFFFFFF - rank).to(tl.int64)


@triton.jit(do_not_specialize=["K", "V"])
def candidates_kernel(
    logits_ptr,
    scores_ptr,
    nodes_ptr,
    first_ptr,
    code_ptr,
    keys_ptr,
    K,
    V,
    FREE: tl.constexpr,
    TOP: tl.constexpr,
    BV: tl.constexpr,
    BF: tl.constexpr,
):
    """Keys of what may follow a beam, the TOP best of its BF."""
    row, v, f = tl.program_id(0).to(tl.int64), tl.arange(0, BV), tl.arange(0, BF)
    logits = tl.load(logits_ptr + row * V + v, mask=v < V, other=float("-inf")).to(tl.float32)
    top = tl.max(logits, 0)
    normaliser = top + tl.log(tl.sum(tl.exp(logits - top), 0)) - tl.load(scores_ptr + row)
    if FREE:
        begin, count = (row % K).to(tl.int32) * V, V
        code = f
    else:
        node = tl.load(nodes_ptr + row)
        begin = tl.load(first_ptr + node).to(tl.int32)
        count = tl.load(first_ptr + node + 1).to(tl.int32) - begin
        code = tl.load(code_ptr + begin + f, mask=f < count, other=0)
    score = tl.load(logits_ptr + row * V + code, mask=f < count, other=float("-inf")).to(tl.float32) - normaliser
    keys = _key(score, tl.where(f < count, begin + f, 0))
    if TOP < BF:
        keys = tl.topk(keys, TOP)
    tl.store(keys_ptr + row * TOP + tl.arange(0, TOP), keys)


@triton.jit(do_not_specialize=["K", "C", "best", "V"])
def choose_beams_kernel(
    keys_ptr,
    nodes_ptr,
    first_ptr,
    scores_ptr,
    ranks_ptr,
    beams_ptr,
    K,
    C,
    best,
    V,
    FREE: tl.constexpr,
    BC: tl.constexpr,
    BB: tl.constexpr,
):
    """The `best` of a window's C keys: their score, their rank, and the beam that it belongs to."""
    w, c, b = tl.program_id(0).to(tl.int64), tl.arange(0, BC), tl.arange(0, BB)
    keys = tl.full([BB], LOWEST, tl.int64)
    for start in range(0, C, BC):
        more = tl.topk(tl.load(keys_ptr + w * C + start + c, mask=start + c < C, other=LOWEST), BB)
        keys = tl.topk(tl.reshape(tl.join(keys, more), [2 * BB]), BB)
    rank = (0x7FFFFFFF - (keys & 0x7FFFFFFF)).to(tl.int32)
    bits = (keys >> 32).to(tl.int32)
    score = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    if FREE:
        beam = rank // V
    else:
        node = tl.load(nodes_ptr + w * K + b, mask=b < K, other=0)
        begin, end = tl.load(first_ptr + node), tl.load(first_ptr + node + 1)
        parent = (rank[:, None] >= begin[None, :]) & (rank[:, None] < end[None, :]) & (b[None, :] < K)
        beam = tl.min(tl.where(parent, b[None, :], K - 1), 1)
    here = w * best + b
    tl.store(scores_ptr + here, score, mask=b < best)
    tl.store(ranks_ptr + here, rank.to(tl.int64), mask=b < best)
    tl.store(beams_ptr + here, beam.to(tl.int64), mask=b < best)
