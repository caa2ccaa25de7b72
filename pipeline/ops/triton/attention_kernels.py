"""Compute T5's attention in Triton, forward, and backward with the gradient of the bias; attention.py launches this.

A program walks over whole sequences of one class of lengths, for one head. No other program adds to the same numbers,
so nothing is atomic and equal inputs give equal bits. Outputs are written completely: positions behind a sequence's
keys and behind the last sequence get zeros.

Shape legend: T query and S key positions of all sequences, W sequences, H heads, D head width, R relative distances;
BM queries and BN keys make a tile, BD (a power of two) columns hold D; m and n are the positions of a tile's queries
and keys in their sequence, i and j those in the tile.
"""
# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def not_dropped(seed, row, column, threshold):
    """Return the dropout mask: whether an integer hash of (seed, row, column) reaches the threshold."""
    row = (row.to(tl.uint32) * 0x9E3779B1) ^ seed.to(tl.uint32)
    row = (row ^ (row >> 16)) * 0x7FEB352D
    row = (row ^ (row >> 15)) * 0x846CA68B
    x = (row ^ (row >> 16)) + column.to(tl.uint32) * 0xC2B2AE35  # rows are mixed twice, columns only once
    return (x ^ (x >> 15)) * 0x2C1B3C6D >= threshold


@triton.jit
def dot(a, b, EXACT: tl.constexpr):
    """Multiply two tiles; float32 in full precision if EXACT."""
    return tl.dot(a, b, input_precision="ieee" if EXACT else "tf32")


@triton.jit
def _positions(positions_ptr, start, i, length, PRUNED: tl.constexpr):
    """Return the positions by which the bias goes: i itself, or where tokens were pruned the positions before."""
    if PRUNED:
        i = tl.load(positions_ptr + start + i, mask=i < length, other=0)
    return i


@triton.jit
def _bias(bias_ptr, h, position_m, position_n, R, HAS_BIAS: tl.constexpr):
    """Load the bias of a tile; R covers every position of every tile, so that no mask is needed."""
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + h * R + R // 2 - position_m[:, None] + position_n[None, :])
    return bias


@triton.jit
def _scores(q, k, bias, m, n, len_k, CAUSAL: tl.constexpr, EXACT: tl.constexpr):
    """Compute the biased scores of a tile; -inf where a key is padding or, if causal, later than the query."""
    s = dot(q, tl.trans(k), EXACT) + bias
    seen = n[None, :] < len_k
    if CAUSAL:
        seen = seen & (n[None, :] <= m[:, None])
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _clear(x_ptr, x_t, first, last, step, h, BN: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Write zeros for one head into rows first .. last - 1, the first BN rows of every `step` rows."""
    d = tl.arange(0, BD)
    for start in range(first, last, step):
        row = (start + tl.arange(0, BN)).to(tl.int64)[:, None]
        zeros = tl.zeros([BN, BD], x_ptr.dtype.element_ty)
        tl.store(x_ptr + row * x_t + h * D + d[None, :], zeros, mask=(row < last) & (d[None, :] < D))


@triton.jit
def _by_distance(ds, BM: tl.constexpr, BN: tl.constexpr):
    """Sum a tile along its diagonals: column c has distance c in the first sum and c - BN in the second.

    The distance is key minus query, both within the tile. Tile a b | c d -> (a + d, b) and (0, c)
    """
    # Row i is rotated left by i, so that a column has one distance, or one less by BN: a b | d c
    i, c = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
    skewed = tl.gather(ds, (i + c) % BN, 1)
    ahead = i + c < BN
    return tl.sum(tl.where(ahead, skewed, 0.0), 0), tl.sum(tl.where(ahead, 0.0, skewed), 0)


@triton.jit
def _add_by_distance(sums_ptr, ds, distance, BM: tl.constexpr, BN: tl.constexpr):
    """Add a tile of dS to a program's sums by distance; `distance` is the distance at the tile's corner."""
    ahead, behind = _by_distance(ds, BM, BN)
    c = tl.arange(0, BN)
    at, exists = sums_ptr + distance + c, c > BN - BM
    ahead += tl.load(at)
    behind += tl.load(at - BN, mask=exists, other=0.0)
    tl.debug_barrier()  # several threads may hold one column: all must load before one of them stores
    tl.store(at, ahead)
    tl.store(at - BN, behind, mask=exists)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["T", "W"])
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    lse_ptr,
    mass_ptr,
    bias_ptr,
    starts_q_ptr,
    starts_k_ptr,
    lengths_ptr,
    class_ptr,
    positions_ptr,
    seed_ptr,
    q_t,
    k_t,
    v_t,
    threshold,
    scale,
    H,
    R,
    T,
    W,
    CLASS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRUNED: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    MASS: tl.constexpr,
    MASS_DROPPED: tl.constexpr,
    MASS_PADDED: tl.constexpr,
    EXACT: tl.constexpr,
    ONE_TILE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
):
    h, i, j, d = tl.program_id(1), tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BD)
    seed = tl.load(seed_ptr)
    if ONE_TILE:  # the bias is the same for all sequences
        bias = _bias(bias_ptr, h, i, j, R, HAS_BIAS)
    for w in range(tl.load(class_ptr + CLASS) + tl.program_id(0), tl.load(class_ptr + CLASS + 1), tl.num_programs(0)):
        q0, k0, len_k = tl.load(starts_q_ptr + w), tl.load(starts_k_ptr + w), tl.load(lengths_ptr + w)
        len_q = tl.load(starts_q_ptr + w + 1) - q0
        for query_start in range(0, len_q, BM):
            m = query_start + i
            position_m = _positions(positions_ptr, q0, m, len_q, PRUNED)
            real_q = (m[:, None] < len_q) & (d[None, :] < D)
            rows = (q0 + m[:, None]).to(tl.int64)
            q = tl.load(q_ptr + rows * q_t + h * D + d[None, :], mask=real_q, other=0.0)
            # Softmax in one walk over the keys: when the running maximum `top` rises, the sums so far shrink.
            top, total = tl.full([BM], float("-inf"), tl.float32), tl.zeros([BM], tl.float32)
            o = tl.zeros([BM, BD], tl.float32)
            for key_start in range(0, len_k, BN):
                n = key_start + j
                keys, real_k = (k0 + n[:, None]).to(tl.int64), (n[:, None] < len_k) & (d[None, :] < D)
                k = tl.load(k_ptr + keys * k_t + h * D + d[None, :], mask=real_k, other=0.0)
                v = tl.load(v_ptr + keys * v_t + h * D + d[None, :], mask=real_k, other=0.0)
                if not ONE_TILE:
                    bias = _bias(bias_ptr, h, position_m, _positions(positions_ptr, k0, n, len_k, PRUNED), R, HAS_BIAS)
                s = _scores(q, k, bias, m, n, len_k, CAUSAL, EXACT)
                higher = tl.maximum(top, tl.max(s, 1))
                p, shrunk = tl.exp2(s * LOG2E - (higher * LOG2E)[:, None]), tl.exp2((top - higher) * LOG2E)
                total = total * shrunk + tl.sum(p, 1)
                if DROPOUT:
                    p = tl.where(not_dropped(seed, (q0 + m[:, None]) * H + h, n[None, :], threshold), p, 0.0)
                o = o * shrunk[:, None] + dot(p.to(v.dtype), v, EXACT)
                top = higher
            o = o * (scale / total)[:, None]
            tl.store(o_ptr + rows * (H * D) + h * D + d[None, :], o.to(o_ptr.dtype.element_ty), mask=real_q)
            lse = top + tl.log(total)
            tl.store(lse_ptr + (q0 + m) * H + h, lse, mask=m < len_q)
            if MASS:  # the mass needs normalised weights: walk over the keys a second time
                counted = m[:, None] < (len_q if MASS_PADDED else tl.minimum(len_q, len_k))
                for key_start in range(0, len_k, BN):
                    n = key_start + j
                    keys, real_k = (k0 + n[:, None]).to(tl.int64), (n[:, None] < len_k) & (d[None, :] < D)
                    k = tl.load(k_ptr + keys * k_t + h * D + d[None, :], mask=real_k, other=0.0)
                    if not ONE_TILE:
                        position_n = _positions(positions_ptr, k0, n, len_k, PRUNED)
                        bias = _bias(bias_ptr, h, position_m, position_n, R, HAS_BIAS)
                    s = _scores(q, k, bias, m, n, len_k, CAUSAL, EXACT)
                    p = tl.exp2(s * LOG2E - (lse * LOG2E)[:, None])
                    if DROPOUT and MASS_DROPPED:
                        stays = not_dropped(seed, (q0 + m[:, None]) * H + h, n[None, :], threshold)
                        p = tl.where(stays, p * scale, 0.0)
                    spot = mass_ptr + (k0 + n) * H + h  # no other program adds to these keys for this head
                    mass = tl.sum(tl.where(counted, p, 0.0), 0) + tl.load(spot, mask=n < len_k, other=0.0)
                    tl.debug_barrier()
                    tl.store(spot, mass, mask=n < len_k)
                    tl.debug_barrier()
    if CLASS == 0:  # the programs of one class clear the rows behind the last sequence
        _clear(
            o_ptr, H * D, tl.load(starts_q_ptr + W) + tl.program_id(0) * BN, T, tl.num_programs(0) * BN, h, BN, D, BD
        )


@triton.jit(do_not_specialize=["T", "S", "W", "side"])
def backward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    do_ptr,
    lse_ptr,
    bias_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    sums_ptr,
    held_ptr,
    starts_q_ptr,
    starts_k_ptr,
    lengths_ptr,
    class_ptr,
    positions_ptr,
    seed_ptr,
    q_t,
    k_t,
    v_t,
    dq_t,
    dk_t,
    threshold,
    scale,
    H,
    R,
    T,
    S,
    W,
    side,
    CLASS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRUNED: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    EXACT: tl.constexpr,
    ONE_KEY_TILE: tl.constexpr,
    ONE_TILE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
):
    h, j, d, i = tl.program_id(1), tl.arange(0, BN), tl.arange(0, BD), tl.arange(0, BM)
    seed = tl.load(seed_ptr)
    program = (tl.program_id(0) * H + h).to(tl.int64)
    sums = sums_ptr + program * (side * side if PRUNED else R)
    ds_sum = tl.zeros([BM, BN], tl.float32)
    for w in range(tl.load(class_ptr + CLASS) + tl.program_id(0), tl.load(class_ptr + CLASS + 1), tl.num_programs(0)):
        q0, k0, len_k = tl.load(starts_q_ptr + w), tl.load(starts_k_ptr + w), tl.load(lengths_ptr + w)
        len_q, capacity_k = tl.load(starts_q_ptr + w + 1) - q0, tl.load(starts_k_ptr + w + 1) - k0
        for key_start in range(0, len_k, BN):
            n = key_start + j
            position_n = _positions(positions_ptr, k0, n, len_k, PRUNED)
            real_k = (n[:, None] < len_k) & (d[None, :] < D)
            keys = (k0 + n[:, None]).to(tl.int64)
            k = tl.load(k_ptr + keys * k_t + h * D + d[None, :], mask=real_k, other=0.0)
            v = tl.load(v_ptr + keys * v_t + h * D + d[None, :], mask=real_k, other=0.0)
            dk, dv = tl.zeros([BN, BD], tl.float32), tl.zeros([BN, BD], tl.float32)
            for query_start in range(0, len_q, BM):
                m = query_start + i
                position_m = _positions(positions_ptr, q0, m, len_q, PRUNED)
                real_q = (m[:, None] < len_q) & (d[None, :] < D)
                rows = (q0 + m[:, None]).to(tl.int64)
                q = tl.load(q_ptr + rows * q_t + h * D + d[None, :], mask=real_q, other=0.0)
                do = tl.load(do_ptr + rows * (H * D) + h * D + d[None, :], mask=real_q, other=0.0)
                lse = tl.load(lse_ptr + (q0 + m) * H + h, mask=m < len_q, other=0.0)
                # The bias is loaded again for each sequence: backward has no registers left to hold it.
                bias = _bias(bias_ptr, h, position_m, position_n, R, HAS_BIAS)
                s = _scores(q, k, bias, m, n, len_k, CAUSAL, EXACT)
                # Rows past len_q are computed too: their do is 0, so they add nothing.
                p = tl.exp2(s * LOG2E - (lse * LOG2E)[:, None])
                dp, p_dropped = dot(do, tl.trans(v), EXACT), p
                if DROPOUT:
                    stays = not_dropped(seed, (q0 + m[:, None]) * H + h, n[None, :], threshold)
                    p_dropped, dp = tl.where(stays, p, 0.0), tl.where(stays, dp, 0.0)
                # delta = sum of o * do over columns; if one tile has all keys, it is the sum of p * dp over them too.
                if ONE_KEY_TILE:
                    delta = tl.sum(p * dp, 1) * scale
                else:
                    o = tl.load(o_ptr + rows * (H * D) + h * D + d[None, :], mask=real_q, other=0.0)
                    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
                ds = p * (dp * scale - delta[:, None])
                dv += dot(tl.trans(p_dropped.to(v.dtype)), do, EXACT)
                dk += dot(tl.trans(ds.to(q.dtype)), q, EXACT)
                dq = dot(ds.to(k.dtype), k, EXACT)
                # Between tiles of keys the sums of dq so far wait in `partial`.
                partial = held_ptr + program * side * D + m[:, None] * D + d[None, :]
                if not ONE_KEY_TILE and key_start > 0:
                    dq += tl.load(partial, mask=real_q, other=0.0)
                    tl.debug_barrier()
                if ONE_KEY_TILE or key_start + BN >= len_k:
                    dq_at = dq_ptr + rows * dq_t + h * D + d[None, :]
                    tl.store(dq_at, dq.to(dq_ptr.dtype.element_ty), mask=real_q)
                else:
                    tl.store(partial, dq, mask=real_q)
                if HAS_BIAS:
                    # dS is summed by pair of positions, in registers, or by distance. After pruning, padding shares
                    # position 0 with a token, but its dS is zero.
                    if PRUNED:
                        spot = sums + position_m[:, None] * side + position_n[None, :]
                        real = (m[:, None] < tl.minimum(len_q, len_k)) & (n[None, :] < len_k)
                        ds += tl.load(spot, mask=real, other=0.0)
                        tl.debug_barrier()
                        tl.store(spot, ds, mask=real)
                    elif ONE_TILE:
                        ds_sum += ds
                    else:
                        _add_by_distance(sums, ds, R // 2 + key_start - query_start, BM, BN)
            here, in_capacity = keys * dk_t + h * D + d[None, :], (n[:, None] < capacity_k) & (d[None, :] < D)
            tl.store(dk_ptr + here, dk.to(dk_ptr.dtype.element_ty), mask=in_capacity)
            tl.store(dv_ptr + here, (dv * scale).to(dv_ptr.dtype.element_ty), mask=in_capacity)
            tl.debug_barrier()
        # Key tiles have written zeros up to their end; the rest of the capacity is cleared here.
        padding = k0 + tl.cdiv(len_k, BN) * BN
        _clear(dk_ptr, dk_t, padding, k0 + capacity_k, BN, h, BN, D, BD)
        _clear(dv_ptr, dk_t, padding, k0 + capacity_k, BN, h, BN, D, BD)
    if HAS_BIAS and ONE_TILE:
        _add_by_distance(sums, ds_sum, R // 2, BM, BN)
    if CLASS == 0:
        first, step = tl.program_id(0) * BN, tl.num_programs(0) * BN
        end_q, end_k = tl.load(starts_q_ptr + W), tl.load(starts_k_ptr + W)
        _clear(dq_ptr, dq_t, end_q + first, T, step, h, BN, D, BD)
        _clear(dk_ptr, dk_t, end_k + first, S, step, h, BN, D, BD)
        _clear(dv_ptr, dk_t, end_k + first, S, step, h, BN, D, BD)
