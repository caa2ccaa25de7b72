"""How the Triton attentions are launched: lengths in classes, classes side by side, compiled together.

Shape legend: H heads, R relative distances, L places of a sequence.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.layout import CLASSES, whole_tiles


@dataclass(frozen=True)
class Tile:
    """What a program works on at once, and how many there are."""

    rows: int  # queries
    columns: int  # keys
    warps: int
    per_chip: int  # programs of a multiprocessor, over all heads


@dataclass(frozen=True)
class Launch:
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


def launches_for(q: Tensor, longest_k: int, tiles: Sequence[Tile]) -> list[Launch]:
    """What keys up to `longest_k` need, given the tile of each class; float32 gets smaller ones."""
    chips = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 2
    found: list[Launch] = []
    for longest, tile in zip(CLASSES[: 1 + sum(longest < longest_k for longest in CLASSES[:-1])], tiles, strict=False):
        rows, columns, warps = tile.rows, tile.columns, tile.warps
        if q.dtype == torch.float32 and columns > 16:
            rows, columns, warps = min(rows, 32), 32, 4
        found.append(Launch(len(found), longest, rows, columns, max(1, chips * tile.per_chip // q.shape[1]), warps))
    return found


def launch_all(
    kernel: Any, launches: list[Launch], arguments: list[tuple[Any, ...]], options: list[dict[str, object]]
) -> None:
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


def with_reach(bias_HR: Tensor | None, longest: int) -> Tensor | None:
    """The bias with room for every place of the last tile, so that its loads need no mask."""
    if bias_HR is None:
        return None
    margin = whole_tiles(longest) - bias_HR.shape[1] // 2
    return F.pad(bias_HR, (margin, margin)) if margin > 0 else bias_HR


def add_diagonals(dbias_HR: Tensor, ds_HLL: Tensor) -> None:
    """Add each diagonal (one relative distance) of [H, L, L] to `dbias`: skew the rows, then sum the columns."""
    length, middle = ds_HLL.shape[1], dbias_HR.shape[1] // 2
    skewed = F.pad(ds_HLL.flip(1), (0, length)).flatten(1)[:, : length * (2 * length - 1)]
    by_distance = skewed.unflatten(1, (length, 2 * length - 1)).sum(1)  # column r: distance r - (length - 1)
    reach = min(length - 1, middle)
    dbias_HR[:, middle - reach : middle + reach + 1] += by_distance[:, length - 1 - reach : length + reach]
