"""The top list of each view: a trained model's by its search, counting's by sums over the neighbours of the history.

Shape legend: W windows, N items of the histories end to end, I items of the catalogue; local: E entries of one list, J
different items of the histories, P neighbours of items, end to end.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from pipeline.decoding.ranking import Outputs
from pipeline.views.counting import Counting
from pipeline.views.fusion import EMPTY, Listed, as_list

# Items of a list; a generator lists what its beam finds.
ENTRIES = 200
# How far below its lowest entry a model's floor lies: nobody knows what it gives an item that it does not list.
MARGIN = 1.0
# Counting gives most items a probability of 0, which has no logarithm: this is added to each.
SMOOTHING = 1e-4
SCORES = 2**25  # of windows and items, held at once by `Dense`
NEIGHBOURS = 2**22  # of histories' items, held at once by `Sparse`
DENSE_ITEMS = 2**15  # a catalogue of more items is large
BLOCK_ITEMS = 2**14  # items whose neighbours are copied to the device at once


def model_list(outputs: Outputs, device: torch.device | str) -> Listed:
    """Return what a search found as a list; slots without an item are empty."""
    items_WE = torch.from_numpy(outputs.items_WK).to(device)
    scores_WE = torch.from_numpy(outputs.scores_WK.astype(np.float32)).to(device)
    return as_list(torch.where(items_WE < 0, EMPTY, items_WE), scores_WE, MARGIN)


class CountingView(Protocol):
    """Counting as a view: neighbours of the history's items, each item of the history weighted by 1 / its age.

    backward: how much a pair in the other order counts; 1: as much as one in this order.
    """

    @property
    def backward(self) -> float: ...

    def list(self, items_N: np.ndarray, offsets: np.ndarray) -> Listed:
        """Return the list of each history items_N[offsets[w]:offsets[w + 1]], oldest item first.

        An item's log-probability is log(p + SMOOTHING), where p is its share of the scores of all items; the floor is
        that of p = 0.
        """
        ...


def counting_view(counted: Counting, device: torch.device | str, backward: float = 1.0) -> CountingView:
    """Return counting as a view whose lists are on this device.

    On the CPU a large catalogue is never touched as a whole. The scores of both forms agree but for rounding; where
    equal scores end a list, the forms may list others of these items.
    """
    device = torch.device(device)
    if device.type == "cpu" and len(counted.counts_I) > DENSE_ITEMS:
        return Sparse(counted, backward)
    return Dense.of(counted, device, backward)


@dataclass(frozen=True)
class Sparse:
    """Counting as a view of a large catalogue on the CPU: only the neighbours of a history's items are touched.

    Of equal scores at the end of a list the smaller item ids are listed.
    """

    counted: Counting
    backward: float

    def list(self, items_N: np.ndarray, offsets: np.ndarray) -> Listed:
        """Return the lists, as `CountingView.list` describes them."""
        windows = len(offsets) - 1
        items_WE = np.full((windows, min(ENTRIES, len(self.counted.counts_I))), EMPTY, np.int64)
        shares_WE = np.zeros(items_WE.shape)
        for block in self._blocks(items_N, offsets):
            begin, end = offsets[block.start], offsets[block.stop]
            scores_WI = self._scores(items_N[begin:end], offsets[block.start : block.stop + 1] - begin)
            for window, (start, stop) in enumerate(itertools.pairwise(scores_WI.indptr), block.start):
                scores_P, items_P = scores_WI.data[start:stop], scores_WI.indices[start:stop]
                best = _first(scores_P, items_P, items_WE.shape[1])
                items_WE[window, : len(best)] = items_P[best]
                shares_WE[window, : len(best)] = scores_P[best] / scores_P.sum()
        scores_WE = torch.where(
            torch.from_numpy(items_WE) >= 0, (torch.from_numpy(shares_WE) + SMOOTHING).log(), 0.0
        ).float()
        return Listed(torch.from_numpy(items_WE), scores_WE, _floor(scores_WE))

    def _blocks(self, items_N: np.ndarray, offsets: np.ndarray) -> Iterator[slice]:
        """Divide the windows into consecutive blocks of about NEIGHBOURS neighbours, and of one window at least."""
        starts = self.counted.pairs.starts
        degrees = np.concatenate([[0], np.cumsum(starts[items_N + 1] - starts[items_N])])[offsets]
        first = 0
        while first < len(offsets) - 1:
            # 3, 4 and 9 neighbours, 8 in a block: up to each window 0 3 7 16 -> windows 0 1 | 2
            last = int(np.searchsorted(degrees, degrees[first] + NEIGHBOURS, side="right")) - 1
            yield slice(first, max(last, first + 1))
            first = max(last, first + 1)

    def _scores(self, items_N: np.ndarray, offsets: np.ndarray) -> sparse.csr_array:
        """Return the scores of the items that come together with each history, float64 [W, I]."""
        items_J, row_N = np.unique(items_N, return_inverse=True)
        # An item may stand twice in a row: its products are added up in the order of the history.
        history_WJ = sparse.csr_array((_recency(offsets), row_N, offsets), shape=(len(offsets) - 1, len(items_J)))
        found_P, weights_P, starts = _weighed(self.counted, items_J, self.backward)
        together_JI = sparse.csr_array((weights_P, found_P, starts), shape=(len(items_J), len(self.counted.counts_I)))
        return sparse.csr_array(history_WJ @ together_JI)


def _first(scores_P: np.ndarray, items_P: np.ndarray, most: int) -> np.ndarray:
    """Return where the highest scores above 0 are, best first, `most` at most; equal scores by item id."""
    at = np.flatnonzero(scores_P > 0)
    if len(at) > most:
        last = len(at) - most
        at = at[scores_P[at] >= np.partition(scores_P[at], last)[last]]
    return at[np.lexsort((items_P[at], -scores_P[at]))[:most]]


def _weighed(counted: Counting, items_J: np.ndarray, backward: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (neighbours of these items end to end, their weights float64 [P], where those of each item start)."""
    pairs = counted.pairs
    entries, starts = pairs.rows(items_J)
    scale_P = np.repeat(counted.scale(items_J), np.diff(starts))
    return pairs.items_E[entries], scale_P * (pairs.after_E[entries] + backward * pairs.before_E[entries]), starts


def _recency(offsets: np.ndarray) -> np.ndarray:
    """Return 1 / age of each item of the histories, 1 for the last one, float64 [N]."""
    recency_N: np.ndarray = 1.0 / (np.repeat(offsets[1:], np.diff(offsets)) - np.arange(offsets[-1]))
    return recency_N


def _floor(scores_WE: Tensor) -> Tensor:
    return scores_WE.new_full((len(scores_WE),), float(np.log(SMOOTHING)))


@dataclass(frozen=True)
class Dense:
    """Counting as a view of a small catalogue, or on an accelerator: the scores of all items of some windows at once.

    starts_I, items_P, weights_P: the neighbours of each item (`Pairs`) with their weight, on the view's device.
    degree_I: how many neighbours each item has, on the host.
    """

    starts_I: Tensor
    items_P: Tensor
    weights_P: Tensor
    degree_I: np.ndarray
    backward: float

    @classmethod
    def of(cls, counted: Counting, device: torch.device, backward: float) -> "Dense":
        """Copy models/counting to the device, block by block."""
        pairs = counted.pairs
        items_P = torch.empty(len(pairs.items_E), dtype=torch.int64, device=device)
        weights_P = torch.empty(len(pairs.items_E), dtype=torch.float64, device=device)
        for first in range(0, len(counted.counts_I), BLOCK_ITEMS):
            items_J = np.arange(first, min(first + BLOCK_ITEMS, len(counted.counts_I)))
            block = slice(int(pairs.starts[items_J[0]]), int(pairs.starts[items_J[-1] + 1]))
            found_P, block_weights_P, _ = _weighed(counted, items_J, backward)
            items_P[block] = torch.from_numpy(found_P.astype(np.int64)).to(device)
            weights_P[block] = torch.from_numpy(block_weights_P).to(device)
        return cls(
            torch.from_numpy(np.array(pairs.starts[:-1])).to(device),
            items_P,
            weights_P,
            np.diff(pairs.starts),
            backward,
        )

    def list(self, items_N: np.ndarray, offsets: np.ndarray) -> Listed:
        """Return the lists, as `CountingView.list` describes them."""
        block = max(1, SCORES // len(self.degree_I))
        parts = [
            self._list(items_N[offsets[start] : offsets[stop]], offsets[start : stop + 1] - offsets[start])
            for start in range(0, len(offsets) - 1, block)
            for stop in [min(start + block, len(offsets) - 1)]
        ]
        items_WE, scores_WE = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return Listed(items_WE, scores_WE, _floor(scores_WE))

    def _list(self, items_N: np.ndarray, offsets: np.ndarray) -> tuple[Tensor, Tensor]:
        windows, catalogue = len(offsets) - 1, len(self.degree_I)
        device = self.starts_I.device
        lengths_W = np.diff(offsets)
        # 1. The neighbours of all items end to end: starts 4 0 and degrees 2 1 -> entries 4 5 | 0
        items_N = np.asarray(items_N, np.int64)
        degree_N = self.degree_I[items_N]
        total = int(degree_N.sum())
        degrees_N, of_items_N = (torch.from_numpy(array).to(device) for array in (degree_N, items_N))
        begin_N = self.starts_I[of_items_N] - (degrees_N.cumsum(0) - degrees_N)
        entry_P = torch.repeat_interleave(begin_N, degrees_N, output_size=total) + torch.arange(total, device=device)
        # 2. Their weights are added up per window and item.
        row_N = torch.from_numpy(np.repeat(np.arange(windows), lengths_W) * catalogue).to(device)
        slot_P = torch.repeat_interleave(row_N, degrees_N, output_size=total) + self.items_P[entry_P]
        weight_P = torch.repeat_interleave(torch.from_numpy(_recency(offsets)).to(device), degrees_N, output_size=total)
        scores_WI = self.weights_P.new_zeros(windows * catalogue)
        scores_WI.index_add_(0, slot_P, weight_P * self.weights_P[entry_P])
        scores_WI = scores_WI.view(windows, catalogue)
        # 3. The largest of each window as shares of all.
        best_WE, items_WE = scores_WI.topk(min(ENTRIES, catalogue), dim=1)
        share_WE = best_WE / scores_WI.sum(1, keepdim=True).clamp(min=1e-30)
        found_WE = best_WE > 0
        return (
            torch.where(found_WE, items_WE, EMPTY),
            torch.where(found_WE, (share_WE + SMOOTHING).log(), 0.0).float(),
        )
