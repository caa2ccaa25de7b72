"""The top list of each view: a trained model's by its search, counting's by sums over the neighbours of the history.

Shape legend: W windows, N items of the histories end to end, I items of the catalogue; local: E entries of one list, P
neighbours of all items of the histories, end to end.
"""

from dataclasses import dataclass

import numpy as np
import torch
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
SCORES = 2**25  # of windows and items, held at once while counting


def model_list(outputs: Outputs, device: torch.device | str) -> Listed:
    """Return what a search found as a list; slots without an item are empty."""
    items_WE = torch.from_numpy(outputs.items_WK).to(device)
    scores_WE = torch.from_numpy(outputs.scores_WK.astype(np.float32)).to(device)
    return as_list(torch.where(items_WE < 0, EMPTY, items_WE), scores_WE, MARGIN)


@dataclass(frozen=True)
class CountingView:
    """Counting as a view: neighbours of the history's items, each item of the history weighted by 1 / its age.

    backward: how much a pair in the other order counts; 1: as much as one in this order.
    starts_I, items_P, weights_P: the neighbours of each item (`Pairs`) with their weight, on the view's device.
    degree_I: how many neighbours each item has, on the host.
    """

    starts_I: Tensor
    items_P: Tensor
    weights_P: Tensor
    degree_I: np.ndarray
    backward: float

    @classmethod
    def of(cls, counted: Counting, device: torch.device | str, backward: float = 1.0) -> "CountingView":
        """Build the view from models/counting."""
        pairs = counted.pairs
        degree_I = np.diff(pairs.starts)
        scale_P = np.repeat(1 / np.sqrt(np.maximum(counted.counts_I, 1)), degree_I)
        weights_P = scale_P * (pairs.after_E + backward * pairs.before_E)
        return cls(
            torch.from_numpy(pairs.starts[:-1]).to(device),
            torch.from_numpy(pairs.items_E.astype(np.int64)).to(device),
            torch.from_numpy(weights_P).to(device),
            degree_I,
            backward,
        )

    def list(self, items_N: np.ndarray, offsets: np.ndarray) -> Listed:
        """Return the list of each history items_N[offsets[w]:offsets[w + 1]], oldest item first.

        An item's log-probability is log(p + SMOOTHING), where p is its share of the scores of all items; the floor is
        that of p = 0.
        """
        block = max(1, SCORES // len(self.degree_I))
        parts = [
            self._list(items_N[offsets[start] : offsets[stop]], offsets[start : stop + 1] - offsets[start])
            for start in range(0, len(offsets) - 1, block)
            for stop in [min(start + block, len(offsets) - 1)]
        ]
        items_WE, scores_WE = (torch.cat(columns) for columns in zip(*parts, strict=True))
        floor_W = scores_WE.new_full((len(scores_WE),), float(np.log(SMOOTHING)))
        return Listed(items_WE, scores_WE, floor_W)

    def _list(self, items_N: np.ndarray, offsets: np.ndarray) -> tuple[Tensor, Tensor]:
        windows, catalogue = len(offsets) - 1, len(self.degree_I)
        device = self.starts_I.device
        lengths_W = np.diff(offsets)
        recency_N = 1.0 / (np.repeat(offsets[1:], lengths_W) - np.arange(len(items_N)))
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
        weight_P = torch.repeat_interleave(torch.from_numpy(recency_N).to(device), degrees_N, output_size=total)
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
