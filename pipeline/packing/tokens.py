"""What a strategy leaves out of a batch before the network begins: tokens of the histories, and the last decoder
positions of some windows.

Nothing is masked: the packed axes of encoder and decoder are shorter. All sizes are known on the host. Where kernels
run they are rounded up to few sizes, by places at the end that belong to no window.

Shape legend: W windows, N items of all histories, M interactions of the splits, S tokens of one item (its codes, then
the separator), L code levels, T encoder tokens that are left, P decoder positions that are left.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.ops.gather import gather_unique
from pipeline.ops.layout import Layout
from pipeline.packing.shape import any_of, capacity_on, count_of


@dataclass(frozen=True)
class EncoderTokens:
    """The tokens that enter the encoder, windows in packed order. They keep their positions among the items that are
    left.
    """

    index_T: Tensor  # int64: which of the N * S tokens each one is
    position_T: Tensor  # int64: its place in its window
    age_T: Tensor  # int64: items of its window after its own
    lengths_W: Tensor  # int64: tokens of each window, ascending

    @classmethod
    def of(cls, kept_NS: np.ndarray, items_W: np.ndarray, device: torch.device, least: int = 0) -> "EncoderTokens":
        """From the tokens that are left of all items; `items_W` of each window, sorted by the tokens that are left.

        Two windows of 1 and 3 items with 2 tokens each, of which the middle item of the second loses both:
        kept 11, 10 00 01 -> place 0 1 2 7, position 0 1 0 3, age 0 0 1 0, lengths 2, 2

        Args:
            least: places where kernels run; more where they do not suffice.
        """
        first_W, stays_N, per_item = np.cumsum(items_W) - items_W, any_of(kept_NS), kept_NS.shape[1]
        # The rank of each item among those of its window that stay: 0, 0 . 1 (any number for an item that leaves).
        before_N: np.ndarray = np.cumsum(stays_N) - stays_N  # items that stay, of all windows, before this one
        rank_N: np.ndarray = before_N - np.repeat(before_N[first_W], items_W)
        # How many of its window stay, told to each item: 1, 2 2 2
        left_N = np.repeat(np.add.reduceat(stays_N, first_W, dtype=np.int64), items_W)
        # A kept token is at its item's rank; as many items come after its own as the window has left, without it.
        index_T = np.flatnonzero(kept_NS)
        item_T, token_T = np.divmod(index_T, per_item)
        position_T, age_T = rank_N[item_T] * per_item + token_T, (left_N - 1 - rank_N)[item_T]
        lengths_W = np.add.reduceat(count_of(kept_NS), first_W)
        size = capacity_on(device, len(index_T), least)
        index, position, age = (_filled_up(array_T, device, size) for array_T in (index_T, position_T, age_T))
        return cls(index, position, age, to_device(lengths_W, device))

    def layout(self, longest: int) -> Layout:
        """The encoder's self-attention; `longest` bounds the positions."""
        return Layout.packed(self.lengths_W, longest, positions_S=self.position_T, reach=longest)


@dataclass(frozen=True)
class DecoderPositions:
    """The decoder positions of each window, where not all have L: its first ones, at least one."""

    index_P: Tensor  # int64: which of the W * L positions each one is
    lengths_W: Tensor  # int64: positions of each window
    levels: int

    @classmethod
    def of(cls, decoded_W: np.ndarray, levels: int, device: torch.device, least: int = 0) -> "DecoderPositions":
        """From the positions of each window, in packed order; `least` as in `EncoderTokens.of`."""
        index_P = np.flatnonzero(np.arange(levels) < decoded_W[:, None])
        size = capacity_on(device, len(index_P), least)
        return cls(_filled_up(index_P, device, size), to_device(decoded_W, device), levels)

    def by_level(self, h_Pd: Tensor) -> Tensor:
        """The states [W, L, d] of the positions that predict each level; what stands where a window has none means
        nothing, and has no gradient.
        """
        ends_W, index_P = self.lengths_W.cumsum(0), torch.arange(len(h_Pd), device=h_Pd.device)
        level_L = torch.arange(self.levels, device=h_Pd.device)
        source_WL = (ends_W - self.lengths_W)[:, None] + torch.minimum(level_L, self.lengths_W[:, None] - 1)
        taken_P = self.index_P.where(index_P < ends_W[-1], -1)
        return gather_unique(h_Pd, source_WL.flatten(), taken_P).unflatten(0, (-1, self.levels))

    def has_level(self, level: int) -> Tensor:
        """bool [W]: the windows that have a position for a level."""
        return self.lengths_W > level

    def layouts(self, encoder: Layout) -> tuple[Layout, Layout]:
        """The decoder's attention to itself, and to the encoder's positions."""
        decoder = Layout.packed(self.lengths_W, self.levels, ascending=False)
        cross = encoder.cross(decoder)
        return decoder.grouped_as(cross), cross


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array of integers as int64 on the device."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device, non_blocking=True)


def _filled_up(array: np.ndarray, device: torch.device, size: int) -> Tensor:
    """With zeros behind, up to `size` places."""
    return to_device(np.pad(array, (0, size - len(array))), device)
