"""What a strategy leaves out of a batch before the network begins: tokens of the histories, and the last decoder
positions of some windows.

Nothing is masked: the packed axes of encoder and decoder are shorter. All sizes are known on the host. On a GPU they
are rounded up to few sizes, by places at the end that belong to no window.

Shape legend: W windows, N items of all histories, M interactions of the splits, S tokens of one item (its codes, then
the separator), L code levels, T encoder tokens that are left, P decoder positions that are left.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.gather import gather_unique
from pipeline.ops.layout import Group, Layout
from pipeline.packing.shape import any_of, count_of, roomy


@dataclass(frozen=True)
class EncoderTokens:
    """The tokens that enter the encoder, windows in packed order. They keep their positions among the items that are
    left.
    """

    place_T: Tensor  # int64: which of the N * S tokens each one is
    position_T: Tensor  # int64: its place in its window
    age_T: Tensor  # int64: items of its window after its own
    lengths_W: Tensor  # int64: tokens of each window, ascending
    groups: tuple[tuple[int, int], ...]  # (windows, tokens of each) of each run of equal lengths; empty on a GPU

    @classmethod
    def of(cls, kept_NS: np.ndarray, items_W: np.ndarray, device: torch.device, least: int = 0) -> "EncoderTokens":
        """From the tokens that are left of all items; `items_W` of each window, sorted by the tokens that are left.

        Args:
            least: places on a GPU; more where they do not suffice.
        """
        first_W, stays_N, per_item = np.cumsum(items_W) - items_W, any_of(kept_NS), kept_NS.shape[1]
        before_N: np.ndarray = np.cumsum(stays_N) - stays_N  # items that are left, in all windows before it and its own
        rank_N: np.ndarray = before_N - np.repeat(before_N[first_W], items_W)
        left_N = np.repeat(np.add.reduceat(stays_N, first_W, dtype=np.int64), items_W)
        place_T = np.flatnonzero(kept_NS)
        item_T, token_T = np.divmod(place_T, per_item)
        lengths_W = np.add.reduceat(count_of(kept_NS), first_W)
        values, counts = np.unique(lengths_W, return_counts=True)
        groups = () if device.type == "cuda" else tuple(zip(counts.tolist(), values.tolist(), strict=True))
        position_T, age_T = rank_N[item_T] * per_item + token_T, (left_N - 1 - rank_N)[item_T]
        return cls(
            _rounded_up(place_T, device, least),
            _rounded_up(position_T, device, least),
            _rounded_up(age_T, device, least),
            _to(lengths_W, device),
            groups,
        )

    def layout(self, longest: int) -> Layout:
        """Of the encoder's self-attention; `longest` bounds the positions."""
        if not self.place_T.is_cuda:
            return Layout(
                tuple(Group(windows, tokens, tokens) for windows, tokens in self.groups), positions_S=self.position_T
            )
        from pipeline.ops.layout import make_spans

        starts = F.pad(self.lengths_W.cumsum(0), (1, 0))
        return Layout(
            spans=make_spans(starts, starts, self.lengths_W, longest, longest, positions=self.position_T, reach=longest)
        )


@dataclass(frozen=True)
class DecoderPositions:
    """The decoder positions of each window, where not all have L: its first ones, at least one."""

    place_P: Tensor  # int64: which of the W * L positions each one is
    lengths_W: Tensor  # int64: positions of each window
    levels: int
    lengths: tuple[int, ...]  # lengths_W on the host; empty on a GPU

    @classmethod
    def of(cls, decoded_W: np.ndarray, levels: int, device: torch.device, least: int = 0) -> "DecoderPositions":
        """From the positions of each window, in packed order; `least` as in `EncoderTokens.of`."""
        place_P = np.flatnonzero(np.arange(levels) < decoded_W[:, None])
        return cls(
            _rounded_up(place_P, device, least),
            _to(decoded_W, device),
            levels,
            () if device.type == "cuda" else tuple(decoded_W.tolist()),
        )

    def by_level(self, h_Pd: Tensor) -> Tensor:
        """The states [W, L, d] of the positions that predict each level; what stands where a window has none means
        nothing, and has no gradient.
        """
        ends_W, place_P = self.lengths_W.cumsum(0), torch.arange(len(h_Pd), device=h_Pd.device)
        level_L = torch.arange(self.levels, device=h_Pd.device)
        source_WL = (ends_W - self.lengths_W)[:, None] + torch.minimum(level_L, self.lengths_W[:, None] - 1)
        taken_P = self.place_P.where(place_P < ends_W[-1], -1)
        return gather_unique(h_Pd, source_WL.flatten(), taken_P).unflatten(0, (-1, self.levels))

    def has_level(self, level: int) -> Tensor:
        """bool [W]: the windows that have a position for a level."""
        return self.lengths_W > level

    def layouts(self, encoder: Layout) -> tuple[Layout, Layout]:
        """Of the decoder's attention to itself, and to the encoder's positions."""
        if (own := encoder.spans) is None:
            keys = itertools.chain(*(itertools.repeat(group.keys, group.sequences) for group in encoder.groups))
            runs = [(len(list(run)), *pair) for pair, run in itertools.groupby(zip(self.lengths, keys, strict=True))]
            return (
                Layout(tuple(Group(windows, length, length) for windows, length, _ in runs)),
                Layout(tuple(Group(*run) for run in runs), encoder.lengths_n),
            )
        from pipeline.ops.layout import make_spans

        starts = F.pad(self.lengths_W.cumsum(0), (1, 0))
        rooms_W = torch.full_like(self.lengths_W, self.levels)  # they are not sorted
        return (
            Layout(spans=make_spans(starts, starts, self.lengths_W, self.levels, self.levels, rooms_W)),
            Layout(spans=make_spans(starts, own.starts_k, own.lengths_k, self.levels, own.longest_k, own.rooms_k)),
        )


def _rounded_up(array: np.ndarray, device: torch.device, least: int) -> Tensor:
    """On a GPU with zeros behind."""
    size = max(least, roomy(len(array)) if len(array) > least else 0) if device.type == "cuda" else len(array)
    return _to(np.pad(array, (0, size - len(array))), device)


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device, non_blocking=True)
