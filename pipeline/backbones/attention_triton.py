"""The packed attention as Triton kernels: one program walks over whole sequences, and no attention map is ever stored.

Sequences are short, at most 512 positions, so a program holds all queries and keys of a sequence and head: nothing is
shared between programs, nothing is added atomically, and equal inputs give equal bits. Sequences are sorted by length;
a launch serves the lengths that its tile fits, with a fixed number of programs, so that no shape ever depends on data.

Backward recomputes the weights from the saved log-sum-exp. The gradient of T5's learned bias is taken in two stages:
each program sums dS over its sequences, place by place, and what the programs hold is then summed along the diagonals,
which are the relative distances. Dropout is a hash of (seed, query, head, key), so that both passes see the same mask.

Written for Hopper, correct on any CUDA GPU that Triton supports. `attention.reference_attention` is the oracle.

Shape legend: T query and S key positions of all sequences, W sequences, H heads, D head width, R relative distances.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from pipeline.backbones.attention import Mass

CLASSES = (16, 32, 64, 128, 512)  # longest key sequence of each launch
LOG2E = tl.constexpr(1.4426950408889634)
AFTER_DROPOUT, PADDED_QUERIES = 2, 4  # added to 1: which mass the forward kernel sums


@dataclass(frozen=True)
class Spans:
    """Where sequences lie on the packed axes; all on the device, so that nothing waits for it.

    The sequences are sorted by `lengths_k`, shortest first. Keys beyond a sequence's length (padding) are not seen.
    """

    starts_q: Tensor  # int32 [W + 1]
    starts_k: Tensor  # int32 [W + 1]
    lengths_k: Tensor  # int32 [W]
    classes: Tensor  # int32 [len(CLASSES) + 1]: the first sequence of each class
    longest_q: int
    longest_k: int
    rooms_k: Tensor | None = None  # ascending bounds of lengths_k, where those are not sorted
    # Of self-attention where tokens were pruned: int32 [T], the places that they had, and how many there were at most
    positions: Tensor | None = None
    reach: int = 0


def make_spans(starts_q: Tensor, starts_k: Tensor, lengths_k: Tensor, longest_q: int, longest_k: int,
               rooms_k: Tensor | None = None, positions: Tensor | None = None, reach: int = 0) -> Spans:
    """Spans from integer tensors of any type. In self-attention `starts_q` is `starts_k` itself, and `longest_k` counts
    padding.

    Raises:
        ValueError: a sequence may be longer than the kernels can hold.
    """
    if max(longest_k, longest_q if starts_q is starts_k else 0) > CLASSES[-1]:
        raise ValueError(f"sequences of {longest_k} positions: the GPU kernels hold at most {CLASSES[-1]}")
    # In self-attention a tile must hold a sequence's queries too, which padding makes longer than its keys.
    sizes = rooms_k if rooms_k is not None else starts_q.diff() if starts_q is starts_k else lengths_k
    classes = torch.searchsorted(sizes.contiguous(), _edges(sizes.device, sizes.dtype), right=True)
    return Spans(starts_q.int(), starts_k.int(), lengths_k.int(), classes.int(), longest_q, longest_k, rooms_k,
                 None if positions is None else positions.int(), reach)


@cache
def _edges(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Where classes end; kept, because a CUDA graph cannot record a copy from the host."""
    return torch.tensor((0, *CLASSES), device=device, dtype=dtype)


def triton_attention(q_THD: Tensor, k_SHD: Tensor, v_SHD: Tensor, spans: Spans, bias_HR: Tensor | None, *,
                     causal: bool = False, dropout: float = 0.0,
                     mass: Mass | None = None) -> tuple[Tensor, Tensor | None]:
    """As `attention.attention`, with the bias by relative distance.

    Args:
        bias_HR: float32, column R // 2 + d is the bias of key position minus query position d; R is odd.
        mass: also return, per key, the weights summed over heads and queries, float32 [S], no gradient.
    """
    seed = torch.randint(2**31 - 1, (1,), device=q_THD.device, dtype=torch.int32) if dropout else spans.classes[:1]
    o_THD, _, mass_SH = _forward_op(
        q_THD, k_SHD, v_SHD, bias_HR, spans.starts_q, spans.starts_k, spans.lengths_k, spans.classes,
        spans.positions if bias_HR is not None else None, seed, spans.longest_q, spans.longest_k, spans.reach, causal,
        dropout, 0 if mass is None else 1 + AFTER_DROPOUT * mass.after_dropout + PADDED_QUERIES * mass.padded_queries)
    return o_THD, mass_SH.sum(1) if mass is not None else None


# ---------------------------------------------------------------------------------------------------- kernels
# mypy: disable-error-code="no-untyped-def"

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
def _dot(a, b, EXACT: tl.constexpr):
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
    s = _dot(q, tl.trans(k), EXACT)
    if HAS_BIAS:  # R reaches over every place of every tile
        s += tl.load(bias_ptr + h * R + R // 2 - place_m[:, None] + place_n[None, :])
    seen = n[None, :] < len_k
    if CAUSAL:
        seen = seen & (n[None, :] <= m[:, None])
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _forward(q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, mass_ptr, bias_ptr, starts_q_ptr, starts_k_ptr, lengths_ptr,
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
                o += _dot(kept.to(v.dtype), v, EXACT)
            tl.store(o_ptr + rows * (H * D) + h * D + d[None, :], o.to(o_ptr.dtype.element_ty), mask=real_q)


@triton.jit
def _backward(q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, lse_ptr, bias_ptr, dq_ptr, dk_ptr, dv_ptr, slab_ptr,
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
                dp, kept = _dot(do, tl.trans(v), EXACT), p
                if DROPOUT:
                    keep = _kept(seed, (q0 + m[:, None]) * H + h, n[None, :], threshold)
                    kept = tl.where(keep, p * scale, 0.0)
                    dp = tl.where(keep, dp * scale, 0.0)
                ds = p * (dp - delta[:, None])
                dv += _dot(tl.trans(kept.to(v.dtype)), do, EXACT)
                dk += _dot(tl.trans(ds.to(q.dtype)), q, EXACT)
                dq = _dot(ds.to(k.dtype), k, EXACT)
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


# ---------------------------------------------------------------------------------------------------- launches

@dataclass(frozen=True)
class _Launch:
    """One class of lengths: which, its longest sequence, the tile of queries and of keys, programs, warps."""

    index: int
    longest: int
    rows: int
    columns: int
    programs: int
    warps: int

    @property
    def one_key_tile(self) -> bool:
        return self.longest <= self.columns

    @property
    def one_tile(self) -> bool:
        return self.one_key_tile and self.rows == self.columns


def _launches(q: Tensor, longest_q: int, longest_k: int, backward: bool) -> Iterator[_Launch]:
    """What keys up to `longest_k` need. Tile sizes and counts are those that measured best on an H200."""
    chips = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 2
    for index, longest in enumerate(CLASSES):
        if index and CLASSES[index - 1] >= longest_k:
            return
        columns = min(longest, 32) if q.dtype == torch.float32 else longest if longest <= 128 else 64
        rows = min(columns, 32 if columns == 128 and backward else 64) if longest_q > 16 else 16
        warps = {16: 1, 32: 2, 64: 4, 128: 4}[columns]
        per_chip = {16: 16, 32: 8, 64: 8, 128: 8, 512: 4}[longest]
        yield _Launch(index, longest, rows, columns, max(1, chips * per_chip // q.shape[1]), warps)


def _launch(kernel: Any, launches: list[_Launch], arguments: list[tuple[Any, ...]],
            options: list[dict[str, object]]) -> None:
    """All launches of one call, each on a stream of its own: they touch different rows, and few sequences of one class
    fill no GPU. What the caller does next waits for all of them.
    """
    q = arguments[0][0]
    grids = [(launch.programs, q.shape[1]) for launch in launches]
    calls = list(zip(grids, arguments, options, strict=True))
    if not q.is_cuda:  # Triton's interpreter
        for grid, positional, named in calls:
            kernel[grid](*positional, **named)
        return
    _compile(kernel, q, calls)
    main = torch.cuda.current_stream(q.device)
    fork = main.record_event()
    for (grid, positional, named), stream in zip(calls, _streams(q.device), strict=False):
        stream.wait_event(fork)
        with torch.cuda.stream(stream):
            kernel[grid](*positional, **named)
        main.wait_event(stream.record_event())


_compiled: set[tuple[object, ...]] = set()


def _compile(kernel: Any, q: Tensor, calls: list[tuple[Any, tuple[Any, ...], dict[str, object]]]) -> None:
    """Compile the kernels of a call side by side: one after another they would take most of a minute."""
    def warm(call: tuple[Any, tuple[Any, ...], dict[str, object]]) -> None:
        with torch.cuda.device(q.device):
            kernel.warmup(*call[1], grid=call[0], **call[2])

    key = (kernel, q.dtype, q.device, *(tuple(named.items()) for _, _, named in calls))
    if key not in _compiled:
        with ThreadPoolExecutor(len(calls)) as pool:
            list(pool.map(warm, calls))
        _compiled.add(key)


@cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in CLASSES]


def _options(q: Tensor, bias: Tensor | None, positions: Tensor | None, causal: bool, dropout: float,
             launch: _Launch) -> dict[str, object]:
    return {"CLASS": launch.index, "HAS_BIAS": bias is not None, "PRUNED": positions is not None,
            "CAUSAL": causal, "DROPOUT": dropout > 0, "EXACT": q.dtype == torch.float32,
            "ONE_KEY_TILE": launch.one_key_tile, "BM": launch.rows, "BN": launch.columns, "D": q.shape[2],
            "BD": max(16, triton.next_power_of_2(q.shape[2])), "num_warps": launch.warps, "num_stages": 1}


def _columns(bias_HR: Tensor | None) -> int:
    return 1 if bias_HR is None else bias_HR.shape[1]


def _with_reach(bias_HR: Tensor | None, longest: int) -> Tensor | None:
    """The bias with room for every place of the last tile, so that its loads need no mask."""
    if bias_HR is None:
        return None
    margin = (longest + 127) // 128 * 128 - bias_HR.shape[1] // 2
    return F.pad(bias_HR, (margin, margin))


@torch.library.custom_op("sidpipe::attention", mutates_args=())
def _forward_op(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, starts_q: Tensor, starts_k: Tensor,
                lengths_k: Tensor, classes: Tensor, positions: Tensor | None, seed: Tensor, longest_q: int,
                longest_k: int, reach: int, causal: bool, dropout: float, mass: int) -> tuple[Tensor, Tensor, Tensor]:
    T, H, D = q.shape
    bias = _with_reach(bias, max(longest_q, longest_k, reach))
    o = q.new_zeros(T, H, D)  # zeros: positions of no sequence must not hold noise
    lse = torch.zeros(T, H, device=q.device, dtype=torch.float32)
    mass_SH = torch.zeros(k.shape[0] if mass else 0, H, device=q.device, dtype=torch.float32)
    launches = list(_launches(q, longest_q, longest_k, False))
    arguments = (q, k, v, o, lse, mass_SH, lse if bias is None else bias, starts_q, starts_k, lengths_k, classes,
                 starts_q if positions is None else positions, seed, q.stride(0), k.stride(0), v.stride(0),
                 int(dropout * 2**32), 1 / (1 - dropout), H, _columns(bias))
    _launch(_forward, launches, [arguments] * len(launches), [
        {"MASS": mass > 0, "MASS_DROPPED": mass & AFTER_DROPOUT > 0, "MASS_PADDED": mass & PADDED_QUERIES > 0,
         **_options(q, bias, positions, causal, dropout, launch)} for launch in launches])
    return o, lse, mass_SH


@_forward_op.register_fake
def _(q, k, v, bias, starts_q, starts_k, lengths_k, classes, positions, seed, longest_q, longest_k, reach, causal,
      dropout, mass):  # type: ignore[no-untyped-def]
    T, H, D = q.shape
    return (q.new_empty(T, H, D), q.new_empty(T, H, dtype=torch.float32),
            q.new_empty(k.shape[0] if mass else 0, H, dtype=torch.float32))


@torch.library.custom_op("sidpipe::attention_backward", mutates_args=())
def _backward_op(do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, bias: Tensor | None,
                 starts_q: Tensor, starts_k: Tensor, lengths_k: Tensor, classes: Tensor, positions: Tensor | None,
                 seed: Tensor, longest_q: int, longest_k: int, reach: int, causal: bool,
                 dropout: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    H, dbias = q.shape[1], torch.zeros(q.shape[1], _columns(bias), device=q.device, dtype=torch.float32)
    bias = _with_reach(bias, max(longest_q, longest_k, reach))
    launches = list(_launches(q, longest_q, longest_k, True))
    # Rows of dq are added to once per key tile, so they are float32 unless there is one.
    added = not all(launch.one_key_tile for launch in launches)
    dq = torch.zeros(q.shape, device=q.device, dtype=torch.float32 if added else q.dtype)
    dk, dv = torch.zeros_like(k, memory_format=torch.contiguous_format), torch.zeros(
        v.shape, device=v.device, dtype=v.dtype)
    slabs = [_slab(launch, q, bias, positions, max(longest_q, longest_k), reach) for launch in launches]
    arguments = [(q, k, v, o, do, lse, lse if bias is None else bias, dq, dk, dv, slab, starts_q, starts_k, lengths_k,
                  classes, starts_q if positions is None else positions, seed, q.stride(0), k.stride(0), v.stride(0),
                  int(dropout * 2**32), 1 / (1 - dropout), H, _columns(bias), slab.shape[-1]) for slab in slabs]
    _launch(_backward, launches, arguments, [
        {"ONE_TILE": launch.one_tile and positions is None, **_options(q, bias, positions, causal, dropout, launch)}
        for launch in launches])
    if bias is not None:
        for slab in slabs:
            _add_diagonals(dbias, slab.sum(0))
    return dq.to(q.dtype), dk, dv, dbias


def _slab(launch: _Launch, q: Tensor, bias: Tensor | None, positions: Tensor | None, longest: int,
          reach: int) -> Tensor:
    """Room for each program's sum of dS by place, [programs, H, side, side]."""
    side = reach if positions is not None else min(launch.longest, -(-longest // launch.columns) * launch.columns)
    # A sum that fits one tile stays in registers, and is stored whole; others are added up here.
    make = torch.empty if launch.one_tile and positions is None else torch.zeros
    return make(launch.programs if bias is not None else 0, q.shape[1], side, side, device=q.device,
                dtype=torch.float32)


@_backward_op.register_fake
def _(do, q, k, v, o, lse, bias, starts_q, starts_k, lengths_k, classes, positions, seed, longest_q, longest_k, reach,
      causal, dropout):  # type: ignore[no-untyped-def]
    return *(x.new_empty(x.shape) for x in (q, k, v)), q.new_empty(q.shape[1], _columns(bias), dtype=torch.float32)


def _add_diagonals(dbias_HR: Tensor, ds_HLL: Tensor) -> None:
    """Add each diagonal (one relative distance) of [H, L, L] to `dbias`: skew the rows, then sum the columns."""
    length, middle = ds_HLL.shape[1], dbias_HR.shape[1] // 2
    skewed = F.pad(ds_HLL.flip(1), (0, length)).flatten(1)[:, :length * (2 * length - 1)]
    by_distance = skewed.unflatten(1, (length, 2 * length - 1)).sum(1)  # column r: distance r - (length - 1)
    reach = min(length - 1, middle)
    dbias_HR[:, middle - reach:middle + reach + 1] += by_distance[:, length - 1 - reach:length + reach]


def _keep_for_backward(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, bias, *where, longest_q, longest_k, reach, causal, dropout, _ = inputs
    ctx.save_for_backward(q, k, v, output[0], output[1], bias, *where)
    ctx.options = longest_q, longest_k, reach, causal, dropout
    ctx.mark_non_differentiable(output[1], output[2])


def _gradients(ctx, do, _lse, _mass):  # type: ignore[no-untyped-def]
    q, k, v, o, lse, bias, *where = ctx.saved_tensors
    dq, dk, dv, dbias = _backward_op(do.contiguous(), q, k, v, o, lse, bias, *where, *ctx.options)
    return dq, dk, dv, None if bias is None else dbias, *[None] * 12


_forward_op.register_autograd(_gradients, setup_context=_keep_for_backward)
