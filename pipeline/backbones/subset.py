"""What a strategy leaves out of a batch before the network begins: tokens of the histories, and the last decoder
positions of some windows.

Nothing is masked: the packed axes of encoder and decoder are shorter. All sizes are known on the host.

Shape legend: W windows, N items of all histories, S tokens of one item (its codes, then the separator), L code levels,
T encoder tokens that are left, P decoder positions that are left, R windows that decode a level.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.backbones.attention import Group, Layout


class Tokens(NamedTuple):
    """The tokens that enter the encoder, where not all do; windows in packed order. They keep their positions."""

    place_T: Tensor  # int64: which of the N * S tokens each one is
    position_T: Tensor  # int64: which of its window's tokens
    lengths_W: Tensor  # int64: tokens of each window, ascending
    groups: tuple[tuple[int, int], ...]  # (windows, tokens of each) of each run of equal lengths; empty on a GPU

    def layout(self, longest: int) -> Layout:
        """Of the encoder's self-attention; `longest` bounds the positions."""
        if not self.place_T.is_cuda:
            return Layout(tuple(Group(windows, tokens, tokens) for windows, tokens in self.groups),
                          positions_S=self.position_T)
        from pipeline.backbones.attention_triton import make_spans

        starts = F.pad(self.lengths_W.cumsum(0), (1, 0))
        return Layout(spans=make_spans(starts, starts, self.lengths_W, longest, longest, positions=self.position_T,
                                       reach=longest))


class Prefixes(NamedTuple):
    """The decoder positions of each window, where not all have L: its first ones, at least one."""

    place_P: Tensor  # int64: which of the W * L positions each one is
    lengths_W: Tensor  # int64: positions of each window
    rows: tuple[Tensor, ...]  # int64 [R] of each level: the windows that have a position for it
    lengths: tuple[int, ...]  # lengths_W on the host; empty on a GPU

    def of_level(self, h_Pd: Tensor, level: int) -> Tensor:
        """The states [R, d] of the positions that predict a level."""
        return h_Pd[(self.lengths_W.cumsum(0) - self.lengths_W)[self.rows[level]] + level]

    def layouts(self, encoder: Layout) -> tuple[Layout, Layout]:
        """Of the decoder's attention to itself, and to the encoder's positions."""
        levels = len(self.rows)
        if (own := encoder.spans) is None:
            keys = itertools.chain(*(itertools.repeat(group.keys, group.sequences) for group in encoder.groups))
            runs = [(len(list(run)), *pair) for pair, run in itertools.groupby(zip(self.lengths, keys, strict=True))]
            return (Layout(tuple(Group(windows, length, length) for windows, length, _ in runs)),
                    Layout(tuple(Group(*run) for run in runs), encoder.lengths_n))
        from pipeline.backbones.attention_triton import make_spans

        starts = F.pad(self.lengths_W.cumsum(0), (1, 0))
        rooms_W = torch.full_like(self.lengths_W, levels)  # they are not sorted
        return (Layout(spans=make_spans(starts, starts, self.lengths_W, levels, levels, rooms_W)),
                Layout(spans=make_spans(starts, own.starts_k, own.lengths_k, levels, own.longest_k, own.rooms_k)))


def without_lost_items(items_N: np.ndarray, offsets: np.ndarray,
                       kept_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arguments without the items that have no token left: those leave as if they had never been there.

    Args:
        offsets: int64 [W + 1], window w owns items_N[offsets[w]:offsets[w + 1]].
        kept_NS: bool, the tokens that stay.
    """
    stays_N = kept_NS.any(1)
    return items_N[stays_N], np.concatenate([[0], np.cumsum(stays_N)])[offsets], kept_NS[stays_N]


def tokens_of(kept_NS: np.ndarray, lengths_W: np.ndarray, device: torch.device, groups: bool) -> Tokens:
    """From the tokens that stay of the items, windows in packed order; `lengths_W` counts items."""
    place_T = np.flatnonzero(kept_NS)
    tokens_per_item = kept_NS.shape[1]
    first_N = np.repeat(np.cumsum(lengths_W) - lengths_W, lengths_W)  # first item of each item's window
    position_T = place_T - first_N[place_T // tokens_per_item] * tokens_per_item
    count_W = np.add.reduceat(kept_NS.sum(1), np.cumsum(lengths_W) - lengths_W)
    values, counts = np.unique(count_W, return_counts=True)
    return Tokens(_to(device, place_T), _to(device, position_T), _to(device, count_W),
                  tuple(zip(counts.tolist(), values.tolist(), strict=True)) if groups else ())


def prefixes_of(decoded_W: np.ndarray, levels: int, device: torch.device, groups: bool) -> Prefixes:
    """From the decoder positions of each window, in packed order."""
    has_WL = np.arange(levels) < decoded_W[:, None]
    rows: Sequence[np.ndarray] = [np.flatnonzero(has_WL[:, level]) for level in range(levels)]
    return Prefixes(_to(device, np.flatnonzero(has_WL)), _to(device, decoded_W),
                    tuple(_to(device, row_R) for row_R in rows), tuple(decoded_W.tolist()) if groups else ())


def _to(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device, non_blocking=True)
