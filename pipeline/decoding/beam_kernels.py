"""These Triton kernels choose a level's beams: the best children of each beam, then the best of these.

A candidate is one int64 key: the score's bits above the candidate's rank, so that sorting keys sorts by score and then
by rank. `beam_search.top_k` does the same in torch.

Shape legend: K beams, V codes of one level; local: C candidates of a window.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**63) + 1)  # below the key of every candidate


@triton.jit
def _key(score, rank):
    """Return one integer in the order of the scores; of equal scores the lower rank has the larger key."""
    bits = score.to(tl.int32, bitcast=True)
    # Floats of one sign are ordered as their bits are; those of negative floats run backwards, so all but the sign
    # flip: 1.0 -> 0x3F800000, -0.0 -> -1, -1.0 -> -1065353217.
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
    """Write the TOP best keys of the continuations of one beam. One program per beam; row is window * K + beam.

    Constrained: the continuations are the children of the beam's node, in first[node] .. first[node + 1], and a child's
    rank is its number. FREE: they are all V codes, and the rank is beam * V + code.

    Args:
        BV: a power of two that holds V codes.
        BF: a power of two that holds all continuations of a beam.
    """
    row = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, BV)
    f = tl.arange(0, BF)
    # The log-softmax of a code plus the beam's score is its logit minus `normaliser`.
    logits = tl.load(logits_ptr + row * V + v, mask=v < V, other=float("-inf")).to(tl.float32)
    top = tl.max(logits, 0)
    normaliser = top + tl.log(tl.sum(tl.exp(logits - top), 0)) - tl.load(scores_ptr + row)
    if FREE:
        begin = (row % K).to(tl.int32) * V
        count = V
        code = f
    else:
        # first 0 2 3, code 4 7 5: node 0 has the children 0 and 1 with codes 4 and 7, node 1 the child 2 with code 5
        node = tl.load(nodes_ptr + row)
        begin = tl.load(first_ptr + node).to(tl.int32)
        count = tl.load(first_ptr + node + 1).to(tl.int32) - begin
        code = tl.load(code_ptr + begin + f, mask=f < count, other=0)
    score = tl.load(logits_ptr + row * V + code, mask=f < count, other=float("-inf")).to(tl.float32) - normaliser
    # Continuations that do not exist (f >= count) have score -inf, and so the lowest keys.
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
    """Write the score, the rank and the beam of the `best` keys among a window's C keys. One program per window.

    Args:
        BC: the keys that are sorted at once, a power of two.
        BB: a power of two that holds `best` and K.
    """
    w = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BC)
    b = tl.arange(0, BB)
    # The best so far and the best of the next BC keys are sorted together.
    keys = tl.full([BB], LOWEST, tl.int64)
    for start in range(0, C, BC):
        more = tl.topk(tl.load(keys_ptr + w * C + start + c, mask=start + c < C, other=LOWEST), BB)
        keys = tl.topk(tl.reshape(tl.join(keys, more), [2 * BB]), BB)
    # A key falls apart again into score and rank (see `_key`).
    rank = (0x7FFFFFFF - (keys & 0x7FFFFFFF)).to(tl.int32)
    bits = (keys >> 32).to(tl.int32)
    score = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    if FREE:
        beam = rank // V
    else:
        # The beam is the one whose node has the child: begin <= rank < end; K - 1 for a key of no candidate.
        node = tl.load(nodes_ptr + w * K + b, mask=b < K, other=0)
        begin = tl.load(first_ptr + node)
        end = tl.load(first_ptr + node + 1)
        parent = (rank[:, None] >= begin[None, :]) & (rank[:, None] < end[None, :]) & (b[None, :] < K)
        beam = tl.min(tl.where(parent, b[None, :], K - 1), 1)
    here = w * best + b
    tl.store(scores_ptr + here, score, mask=b < best)
    tl.store(ranks_ptr + here, rank.to(tl.int64), mask=b < best)
    tl.store(beams_ptr + here, beam.to(tl.int64), mask=b < best)
