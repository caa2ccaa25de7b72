"""The kernels of attention_triton.py: forward, and backward with the gradient of T5's bias.

A program walks over whole sequences of one class of lengths, for one head. It alone adds to what it adds to, so nothing
is atomic and equal inputs give equal bits. BM queries and BN keys make a tile, BD (a power of two) columns hold D.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _kept(seed, row, column, threshold):
    """Counter-based dropout mask: an integer hash of (seed, row, column) at or above a threshold."""
    row = (row.to(tl.uint32) * 0x9E3779B1) ^ seed.to(tl.uint32)
    row = (row ^ (row >> 16)) * 0x7FEB352D
    row = (row ^ (row >> 15)) * 0x846CA68B
    x = (row ^ (row >> 16)) + column.to(tl.uint32) * 0xC2B2AE35  # rows are mixed once, places only twice
    x = (x ^ (x >> 15)) * 0x2C1B3C6D
    return (x ^ (x >> 16)) >= threshold


@triton.jit
def dot(a, b, EXACT: tl.constexpr):
    return tl.dot(a, b, input_precision="ieee" if EXACT else "tf32")


@triton.jit
def _places(positions_ptr, start, i, length, PRUNED: tl.constexpr):
    """Places in the bias of a sequence's positions i: themselves, unless tokens were pruned."""
    if PRUNED:
        i = tl.load(positions_ptr + start + i, mask=i < length, other=0)
    return i


@triton.jit
def _scores(q, k, bias_ptr, h, m, n, place_m, place_n, len_k, R, HAS_BIAS: tl.constexpr, CAUSAL: tl.constexpr,
            EXACT: tl.constexpr):
    s = dot(q, tl.trans(k), EXACT)
    if HAS_BIAS:  # R reaches over every place of every tile
        s += tl.load(bias_ptr + h * R + R // 2 - place_m[:, None] + place_n[None, :])
    seen = n[None, :] < len_k
    if CAUSAL:
        seen = seen & (n[None, :] <= m[:, None])
    return tl.where(seen, s, float("-inf"))


@triton.jit
def forward_kernel(q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, mass_ptr, bias_ptr, starts_q_ptr, starts_k_ptr, lengths_ptr,
             class_ptr, positions_ptr, seed_ptr, q_t, k_t, v_t, threshold, scale, H, R,
             CLASS: tl.constexpr, HAS_BIAS: tl.constexpr, PRUNED: tl.constexpr, CAUSAL: tl.constexpr,
             DROPOUT: tl.constexpr, MASS: tl.constexpr, MASS_DROPPED: tl.constexpr, MASS_PADDED: tl.constexpr,
             EXACT: tl.constexpr, ONE_KEY_TILE: tl.constexpr,
             BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    h, j, d = tl.program_id(1), tl.arange(0, BN), tl.arange(0, BD)
    seed = tl.load(seed_ptr)
    for w in range(tl.load(class_ptr + CLASS) + tl.program_id(0), tl.load(class_ptr + CLASS + 1), tl.num_programs(0)):
        q0, k0, len_k = tl.load(starts_q_ptr + w), tl.load(starts_k_ptr + w), tl.load(lengths_ptr + w)
        len_q = tl.load(starts_q_ptr + w + 1) - q0
        for query_start in range(0, len_q, BM):
            m = query_start + tl.arange(0, BM)
            place_m = _places(positions_ptr, q0, m, len_q, PRUNED)
            real_q = (m[:, None] < len_q) & (d[None, :] < D)
            rows = (q0 + m[:, None]).to(tl.int64)
            q = tl.load(q_ptr + rows * q_t + h * D + d[None, :], mask=real_q, other=0.0)
            # First the log-sum-exp: over the one tile, or tile by tile with a running maximum.
            top = tl.full([BM], float("-inf"), tl.float32)
            total = tl.zeros([BM], tl.float32)
            if ONE_KEY_TILE:
                keys = (k0 + j[:, None]).to(tl.int64)
                k = tl.load(k_ptr + keys * k_t + h * D + d[None, :], mask=(j[:, None] < len_k) & (d[None, :] < D),
                            other=0.0)
                place_j = _places(positions_ptr, k0, j, len_k, PRUNED)
                s = _scores(q, k, bias_ptr, h, m, j, place_m, place_j, len_k, R, HAS_BIAS, CAUSAL, EXACT)
                top = tl.max(s, 1)
                total = tl.sum(tl.exp2((s - top[:, None]) * LOG2E), 1)
            else:
                for key_start in range(0, len_k, BN):
                    n = key_start + j
                    place_n = _places(positions_ptr, k0, n, len_k, PRUNED)
                    keys = (k0 + n[:, None]).to(tl.int64)
                    k = tl.load(k_ptr + keys * k_t + h * D + d[None, :],
                                mask=(n[:, None] < len_k) & (d[None, :] < D), other=0.0)
                    s = _scores(q, k, bias_ptr, h, m, n, place_m, place_n, len_k, R, HAS_BIAS, CAUSAL, EXACT)
                    higher = tl.maximum(top, tl.max(s, 1))
                    total = total * tl.exp2((top - higher) * LOG2E)
                    total += tl.sum(tl.exp2((s - higher[:, None]) * LOG2E), 1)
                    top = higher
            lse = top + tl.log(total)
            tl.store(lse_ptr + (q0 + m) * H + h, lse, mask=m < len_q)
            o = tl.zeros([BM, BD], tl.float32)
            for key_start in range(0, len_k, BN):
                n = key_start + j
                place_n = _places(positions_ptr, k0, n, len_k, PRUNED)
                keys = (k0 + n[:, None]).to(tl.int64)
                real_k = (n[:, None] < len_k) & (d[None, :] < D)
                v = tl.load(v_ptr + keys * v_t + h * D + d[None, :], mask=real_k, other=0.0)
                if not ONE_KEY_TILE:  # else the scores are there
                    k = tl.load(k_ptr + keys * k_t + h * D + d[None, :], mask=real_k, other=0.0)
                    s = _scores(q, k, bias_ptr, h, m, n, place_m, place_n, len_k, R, HAS_BIAS, CAUSAL, EXACT)
                p = tl.exp2(s * LOG2E - (lse * LOG2E)[:, None])
                kept = p
                if DROPOUT:
                    kept = tl.where(_kept(seed, (q0 + m[:, None]) * H + h, n[None, :], threshold), p * scale, 0.0)
                if MASS:  # this program alone adds to its sequence's keys for its head
                    counted = m[:, None] < (len_q if MASS_PADDED else tl.minimum(len_q, len_k))
                    spot = mass_ptr + (k0 + n) * H + h
                    mass = tl.sum(tl.where(counted, kept if MASS_DROPPED else p, 0.0), 0)
                    mass += tl.load(spot, mask=n < len_k, other=0.0)
                    tl.debug_barrier()
                    tl.store(spot, mass, mask=n < len_k)
                    tl.debug_barrier()
                o += dot(kept.to(v.dtype), v, EXACT)
            tl.store(o_ptr + rows * (H * D) + h * D + d[None, :], o.to(o_ptr.dtype.element_ty), mask=real_q)


@triton.jit
def backward_kernel(q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, lse_ptr, bias_ptr, dq_ptr, dk_ptr, dv_ptr, slab_ptr,
              starts_q_ptr, starts_k_ptr, lengths_ptr, class_ptr, positions_ptr, seed_ptr,
              q_t, k_t, v_t, threshold, scale, H, R, side,
              CLASS: tl.constexpr, HAS_BIAS: tl.constexpr, PRUNED: tl.constexpr, CAUSAL: tl.constexpr,
              DROPOUT: tl.constexpr, EXACT: tl.constexpr, ONE_KEY_TILE: tl.constexpr, ONE_TILE: tl.constexpr,
              BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    h, j, d, i = tl.program_id(1), tl.arange(0, BN), tl.arange(0, BD), tl.arange(0, BM)
    seed = tl.load(seed_ptr)
    ds_sum = tl.zeros([BM, BN], tl.float32)
    slab = slab_ptr + (tl.program_id(0) * H + h).to(tl.int64) * side * side
    for w in range(tl.load(class_ptr + CLASS) + tl.program_id(0), tl.load(class_ptr + CLASS + 1), tl.num_programs(0)):
        q0, k0, len_k = tl.load(starts_q_ptr + w), tl.load(starts_k_ptr + w), tl.load(lengths_ptr + w)
        len_q = tl.load(starts_q_ptr + w + 1) - q0
        for key_start in range(0, len_k, BN):
            n = key_start + j
            place_n = _places(positions_ptr, k0, n, len_k, PRUNED)
            real_k = (n[:, None] < len_k) & (d[None, :] < D)
            keys = (k0 + n[:, None]).to(tl.int64)
            k = tl.load(k_ptr + keys * k_t + h * D + d[None, :], mask=real_k, other=0.0)
            v = tl.load(v_ptr + keys * v_t + h * D + d[None, :], mask=real_k, other=0.0)
            dk, dv = tl.zeros([BN, BD], tl.float32), tl.zeros([BN, BD], tl.float32)
            for query_start in range(0, len_q, BM):
                m = query_start + i
                place_m = _places(positions_ptr, q0, m, len_q, PRUNED)
                real_q = (m[:, None] < len_q) & (d[None, :] < D)
                rows = (q0 + m[:, None]).to(tl.int64)
                q = tl.load(q_ptr + rows * q_t + h * D + d[None, :], mask=real_q, other=0.0)
                o = tl.load(o_ptr + rows * (H * D) + h * D + d[None, :], mask=real_q, other=0.0)
                do = tl.load(do_ptr + rows * (H * D) + h * D + d[None, :], mask=real_q, other=0.0)
                lse = tl.load(lse_ptr + (q0 + m) * H + h, mask=m < len_q, other=0.0)
                delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
                s = _scores(q, k, bias_ptr, h, m, n, place_m, place_n, len_k, R, HAS_BIAS, CAUSAL, EXACT)
                p = tl.where(m[:, None] < len_q, tl.exp2(s * LOG2E - (lse * LOG2E)[:, None]), 0.0)
                dp, kept = dot(do, tl.trans(v), EXACT), p
                if DROPOUT:
                    keep = _kept(seed, (q0 + m[:, None]) * H + h, n[None, :], threshold)
                    kept = tl.where(keep, p * scale, 0.0)
                    dp = tl.where(keep, dp * scale, 0.0)
                ds = p * (dp - delta[:, None])
                dv += dot(tl.trans(kept.to(v.dtype)), do, EXACT)
                dk += dot(tl.trans(ds.to(q.dtype)), q, EXACT)
                dq = dot(ds.to(k.dtype), k, EXACT)
                dq_at = dq_ptr + rows * (H * D) + h * D + d[None, :]
                if not ONE_KEY_TILE:  # this program alone adds to these rows
                    dq += tl.load(dq_at, mask=real_q, other=0.0)
                    tl.debug_barrier()
                tl.store(dq_at, dq.to(dq_ptr.dtype.element_ty), mask=real_q)
                if HAS_BIAS:
                    if ONE_TILE:
                        ds_sum += ds
                    else:  # and to this slab
                        spot = slab + place_m[:, None] * side + place_n[None, :]
                        # Where tokens were pruned, padding shares place 0 with a token; its gradient is zero.
                        real = (m[:, None] < (tl.minimum(len_q, len_k) if PRUNED else len_q)) & (n[None, :] < len_k)
                        ds += tl.load(spot, mask=real, other=0.0)
                        tl.debug_barrier()
                        tl.store(spot, ds, mask=real)
            here = keys * (H * D) + h * D + d[None, :]
            tl.store(dk_ptr + here, dk.to(dk_ptr.dtype.element_ty), mask=real_k)
            tl.store(dv_ptr + here, dv.to(dv_ptr.dtype.element_ty), mask=real_k)
            tl.debug_barrier()
    if HAS_BIAS and ONE_TILE:
        tl.store(slab + i[:, None] * side + j[None, :], ds_sum)
