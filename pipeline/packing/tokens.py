"""Index the encoder tokens and decoder positions of a batch that are kept, where a strategy leaves some out.

Nothing is masked: the packed axes of encoder and decoder are shorter. All sizes are known on the host. Where kernels
run, sizes are rounded up to few values by slots at the end that belong to no window.

Shape legend: W windows, N items of all histories, S tokens of one item (its codes, then the separator), L code levels,
T encoder tokens that are kept, P decoder positions that are kept, d model width.
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
    """`EncoderTokens` lists the tokens that enter the encoder, windows in packed order.

    A token has the position that it would have if only whole items were left out: items that lost all their tokens do
    not count, single lost tokens do.
    """

    index_T: Tensor  # int64: which of the N * S tokens each one is
    position_T: Tensor  # int64: its position in its window
    age_T: Tensor  # int64: how many items of its window come after its item
    lengths_W: Tensor  # int64: tokens of each window, ascending

    @classmethod
    def of(cls, kept_NS: np.ndarray, items_W: np.ndarray, device: torch.device, least: int = 0) -> "EncoderTokens":
        """List the tokens that `kept_NS` marks; at least one of each window.

        Two windows of 1 and 3 items with 2 tokens each; the middle item of the second window loses both tokens:
        kept 11 | 10 00 01 -> index 0 1 | 2 7, position 0 1 | 0 3, age 0 0 | 1 0, lengths 2, 2

        Args:
            kept_NS: bool, the tokens that are kept.
            items_W: int64, items of each window; windows are sorted by the number of their kept tokens.
            least: slots where kernels run; more where they do not suffice.
        """
        per_item = kept_NS.shape[1]
        first_W = np.cumsum(items_W) - items_W  # the first item of each window: 0, 1
        stays_N = any_of(kept_NS)  # the items that have a token left: 1 | 1 0 1
        # The rank of each item, from 0, among those of its window that stay: 0 | 0 . 1 (an item that leaves has any).
        before_N: np.ndarray = np.cumsum(stays_N) - stays_N  # items of all windows that stay before it: 0 | 1 2 2
        rank_N: np.ndarray = before_N - np.repeat(before_N[first_W], items_W)
        # How many items of its window stay, repeated for each item: 1 | 2 2 2
        left_N = np.repeat(np.add.reduceat(stays_N, first_W, dtype=np.int64), items_W)
        # The kept tokens 0 1 | 2 7 belong to items 0 0 | 1 3, and are the tokens 0 1 | 0 1 of these.
        index_T = np.flatnonzero(kept_NS)
        item_T, token_T = np.divmod(index_T, per_item)
        # Token 7 is the second one of the item of rank 1: position 1 * 2 + 1 = 3. Of 2 items none comes after it: age 0
        position_T = rank_N[item_T] * per_item + token_T
        age_T = (left_N - 1 - rank_N)[item_T]
        lengths_W = np.add.reduceat(count_of(kept_NS), first_W)
        size = capacity_on(device, len(index_T), least)
        return cls(
            index_T=_filled_up(index_T, device, size),
            position_T=_filled_up(position_T, device, size),
            age_T=_filled_up(age_T, device, size),
            lengths_W=to_device(lengths_W, device),
        )

    def layout(self, longest: int) -> Layout:
        """Return the layout of the encoder's self-attention; `longest` bounds the positions."""
        return Layout.packed(self.lengths_W, longest, positions_S=self.position_T, reach=longest)


@dataclass(frozen=True)
class DecoderPositions:
    """`DecoderPositions` lists the decoder positions where not all windows have L: the first ones, at least one."""

    index_P: Tensor  # int64: which of the W * L positions each one is
    lengths_W: Tensor  # int64: positions of each window
    levels: int

    @classmethod
    def of(cls, decoded_W: np.ndarray, levels: int, device: torch.device, least: int = 0) -> "DecoderPositions":
        """List the first `decoded_W` positions of each window, windows in packed order.

        levels 3, decoded 1, 3 -> index 0 | 3 4 5

        Args:
            least: as in `EncoderTokens.of`.
        """
        index_P = np.flatnonzero(np.arange(levels) < decoded_W[:, None])
        size = capacity_on(device, len(index_P), least)
        return cls(_filled_up(index_P, device, size), to_device(decoded_W, device), levels)

    def by_level(self, h_Pd: Tensor) -> Tensor:
        """Return the states [W, L, d] that predict each level.

        Where a window has no position for a level, its last state stands in: it means nothing and has no gradient.
        """
        # levels 3, lengths 1, 3: the windows' positions end at 1, 4 and begin at 0, 1.
        ends_W = self.lengths_W.cumsum(0)
        starts_W = ends_W - self.lengths_W
        # The position that each level reads, at most the window's last one: 0 0 0, 1 2 3
        level_L = torch.arange(self.levels, device=h_Pd.device)
        source_WL = starts_W[:, None] + torch.minimum(level_L, self.lengths_W[:, None] - 1)
        # Where in [W * L] each position is read by right: 0 | 3 4 5, and -1 for the slots behind the last window.
        number_P = torch.arange(len(h_Pd), device=h_Pd.device)
        slot_P = self.index_P.where(number_P < ends_W[-1], -1)
        return torch.unflatten(gather_unique(h_Pd, source_WL.flatten(), slot_P), 0, (-1, self.levels))

    def has_level(self, level: int) -> Tensor:
        """Return for each window whether it has a position for the level, bool [W]."""
        return self.lengths_W > level

    def layouts(self, encoder: Layout) -> tuple[Layout, Layout]:
        """Return the layouts of the decoder's attention to itself, and to the encoder's positions."""
        decoder = Layout.packed(self.lengths_W, self.levels, ascending=False)
        cross = encoder.cross(decoder)
        return decoder.grouped_as(cross), cross


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array of integers to the device, as int64."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device, non_blocking=True)


def _filled_up(array: np.ndarray, device: torch.device, size: int) -> Tensor:
    """Copy the array to the device, with zeros behind it up to `size` slots."""
    return to_device(np.pad(array, (0, size - len(array))), device)
