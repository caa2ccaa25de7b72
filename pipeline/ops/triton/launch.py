"""Launch the Triton attentions: lengths in classes, classes side by side, kernels compiled together.

Shape legend: H heads, R relative distances, P positions of queries, C positions of keys.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.layout import CLASSES, whole_tiles

Arguments: TypeAlias = tuple[Any, ...]  # of a kernel, by position: tensors and numbers
Options: TypeAlias = dict[str, object]  # of a kernel, by name: constants of its compilation
Call: TypeAlias = tuple[tuple[int, int], Arguments, Options]  # beginning with the grid: programs, heads


@dataclass(frozen=True)
class Tile:
    """A `Tile` says what a program works on at once, and how many programs run."""

    rows: int  # queries
    columns: int  # keys
    warps: int
    per_chip: int  # programs of a multiprocessor, over all heads


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A `Launch` serves one class of lengths."""

    index: int  # of the class in `CLASSES`
    longest: int  # keys of the longest sequence in the class
    rows: int  # queries of a tile
    columns: int  # keys of a tile
    programs: int  # of each head
    warps: int

    @property
    def one_key_tile(self) -> bool:
        """Tell whether one tile holds all keys of a sequence."""
        return self.longest <= self.columns

    @property
    def one_tile(self) -> bool:
        """Tell whether one tile holds all queries and keys of a sequence in self-attention."""
        return self.one_key_tile and self.rows == self.columns


def launches_for(q: Tensor, longest_k: int, tiles: Sequence[Tile]) -> list[Launch]:
    """Return the launches that keys up to `longest_k` need, given the tile of each class; float32 gets smaller tiles.

    longest_k 40 -> classes of at most 16, 32 and 64 keys
    """
    chips = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 2
    needed = CLASSES[: 1 + sum(longest < longest_k for longest in CLASSES[:-1])]
    found: list[Launch] = []
    for index, (longest, tile) in enumerate(zip(needed, tiles, strict=False)):
        small = q.dtype == torch.float32 and tile.columns > 16
        found.append(
            Launch(
                index=index,
                longest=longest,
                rows=min(tile.rows, 32) if small else tile.rows,
                columns=32 if small else tile.columns,
                programs=max(1, chips * tile.per_chip // q.shape[1]),
                warps=4 if small else tile.warps,
            )
        )
    return found


def launch_all(kernel: Any, launches: list[Launch], arguments: list[Arguments], options: list[Options]) -> None:
    """Run all launches of one call, each on a separate stream.

    They write different rows, and the few sequences of one class fill no GPU. What the caller does next waits for all
    of them.

    Args:
        kernel: a Triton function; Triton has no types.
        arguments: for each launch; the first of them are the queries [T, H, D].
        options: for each launch.
    """
    q = arguments[0][0]
    grids = [(launch.programs, q.shape[1]) for launch in launches]
    calls: list[Call] = list(zip(grids, arguments, options, strict=True))
    if not q.is_cuda:  # Triton's interpreter
        for grid, positional, named in calls:
            kernel[grid](*positional, **named)
        return
    compile_variants(kernel, q, calls)
    # Each stream waits for the work before this call, and the main stream for each of them.
    main = torch.cuda.current_stream(q.device)
    fork = main.record_event()
    for (grid, positional, named), stream in zip(calls, _streams(q.device), strict=False):
        stream.wait_event(fork)
        with torch.cuda.stream(stream):
            kernel[grid](*positional, **named)
        main.wait_event(stream.record_event())


_compiled: set[tuple[object, ...]] = set()


def compile_variants(kernel: Any, q: Tensor, calls: list[Call]) -> None:
    """Compile the variants of a kernel side by side, once: one after another they would take most of a minute.

    Args:
        kernel: a Triton function; Triton has no types.
        q: a tensor whose type and device the variants depend on.
        calls: how each variant will be launched; nothing is.
    """

    def warm(call: Call) -> None:
        grid, positional, named = call
        with torch.cuda.device(q.device):
            kernel.warmup(*positional, grid=grid, **named)

    key = (kernel, q.dtype, q.device, *(tuple(named.items()) for _, _, named in calls))
    if key not in _compiled:
        with ThreadPoolExecutor(len(calls)) as pool:
            list(pool.map(warm, calls))
        _compiled.add(key)


@cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in CLASSES]


def with_reach(bias_HR: Tensor, longest: int) -> Tensor:
    """Pad the bias with zeros until it covers every position of the last tile, so that its loads need no mask."""
    margin = whole_tiles(longest) - bias_HR.shape[1] // 2
    return F.pad(bias_HR, (margin, margin)) if margin > 0 else bias_HR


def add_diagonals(dbias_HR: Tensor, ds_HPC: Tensor) -> None:
    """Add each diagonal (one relative distance) of [H, P, C] to `dbias`: skew the rows, then sum the columns.

    The last of the C columns, which are P or more, has distance 0 in the last of the P rows.

    a b | c d has the diagonals c, a + d, b: distances -1, 0, 1
    """
    rows, columns = ds_HPC.shape[1:]
    middle = dbias_HR.shape[1] // 2  # the column of distance 0
    # Last row first, `rows` zeros behind each, read again in rows shorter by one: c d 0 | 0 a b
    width = columns + rows - 1
    skewed = F.pad(ds_HPC.flip(1), (0, rows)).flatten(1)[:, : rows * width]
    # Column r now has the distance r - (columns - 1).
    by_distance = torch.unflatten(skewed, 1, (rows, width)).sum(1)
    # Distances that one of the two does not have are left out.
    behind, ahead = min(columns - 1, middle), min(rows - 1, middle)
    dbias_HR[:, middle - behind : middle + ahead + 1] += by_distance[:, columns - 1 - behind : columns + ahead]
