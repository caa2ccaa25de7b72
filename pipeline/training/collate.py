"""From the windows of a step to a batch on the device.

Shape legend: W windows, N items, I items of the catalogue, L code levels, U distinct items.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.packing.batch import Batch, Selected
from pipeline.packing.histories import DistinctItems, Histories, slices
from pipeline.packing.shape import Shape, rounded_up
from pipeline.training.steps import Step, deal
from pipeline.training.windows import Windows

# By which steps of a pass may have more than its first one, of items, tokens and decoder positions: tokens fill a
# budget, but the windows that they are of come in varying numbers.
FITTED_MARGINS = (0.01, 0.015, 0.04)
WeighItems = Literal["unlisted", "each", "occurrence"]


def common_shape(steps: Iterable[Step], parts: int, longest: int) -> Shape:
    """A shape for the batches of these steps, and for those that are a little larger."""
    return Shape.of(
        [step.windows.lengths_W[rows] for step in steps for rows in deal(step.windows.lengths_W, parts)],
        longest,
        margin=0.03,
    )


def fitted_shape(shape: Shape, step: Step, parts: int) -> Shape:
    """`shape` with no more room than batches need that lose as much as the first step of a pass."""
    if step.selected is None:
        return shape
    found = []
    for rows in deal(step.windows.lengths_W, parts):
        chosen, filling = cast(Selected, _chosen_rows(step, rows)), max(shape.windows - len(rows), 0)
        arrays = (chosen.stays_N, chosen.tokens_NS, chosen.decoded_W)
        # A window that fills a batch has one of each
        found.append(
            [
                0 if array is None else int((array.sum() + filling) * (1 + margin)) + 1
                for array, margin in zip(arrays, FITTED_MARGINS, strict=True)
            ]
        )
    items, tokens, positions = np.max(found, 0).tolist()
    items, tokens, positions = rounded_up(items), rounded_up(tokens, bits=5), rounded_up(positions)  # tokens cost most
    return replace(shape, items=min(items or shape.items, shape.items), tokens=tokens, positions=positions)


class Collator:
    """Makes batches of the windows of a step, on the device of `codes_IL`.

    Args:
        items_N: the splits' items; windows point into it.
        codes_IL: the catalogue's.
        times_N: the splits' timestamps, for a backbone that wants them.
        pad_to: encoder positions of every window of a padded batch, 0 for packed.
        longest: bound of a window's items; 0: that of each batch.
        all_targets: every item of a window but the first is a target too.
        weigh_items: see `Network.items`.
    """

    def __init__(
        self,
        items_N: np.ndarray,
        codes_IL: Tensor,
        *,
        times_N: np.ndarray | None = None,
        pad_to: int = 0,
        longest: int = 0,
        all_targets: bool = False,
        weigh_items: WeighItems = "unlisted",
    ):
        self.items_N, self.codes_IL, self.times_N = items_N, codes_IL, times_N
        self.pad_to, self.longest = pad_to, longest
        self.all_targets, self.weigh_items = all_targets, weigh_items

    def samples(self, step: Step) -> int:
        """(history, target) pairs of a step."""
        return int(step.windows.lengths_W.sum()) if self.all_targets else len(step.windows)

    def count_items(self, step: Step) -> "DistinctItemCounts | None":
        """What lists the distinct items of the step's batches, where the network asks for them."""
        if self.weigh_items == "unlisted":
            return None
        return DistinctItemCounts(self.items_N, step, self.weigh_items, self.samples(step), len(self.codes_IL))

    def __call__(
        self,
        step: Step,
        rows_W: np.ndarray,
        *,
        shape: Shape | None = None,
        item_counts: "DistinctItemCounts | None" = None,
    ) -> Batch:
        """The windows `rows_W` of a step as a batch.

        Without rows the batch is the step's first window at weight zero: every process must take part in each exchange
        of gradients. Windows that fill the batch up to `shape` have weight zero too.
        """
        if len(rows_W) == 0:
            rows_W, factors_W, real = np.zeros(1, np.int64), np.zeros(1, np.float32), 0
        else:
            real = int(step.windows.lengths_W[rows_W].sum())  # items, but for those of windows that only fill
            factors_W = step.weights_W[rows_W]
        windows, chosen = step.windows[rows_W], _chosen_rows(step, rows_W)
        if shape is not None:
            windows, factors_W, chosen = self._filled(shape, windows, factors_W, chosen)
        index_N, offsets = slices(windows.starts_W, windows.lengths_W)
        times_N = None if self.times_N is None else self.times_N[index_N]
        if chosen is not None and (stays_N := chosen.stays_N) is not None:
            times_N, real = None if times_N is None else times_N[stays_N], int(stays_N[:real].sum())
            index_N, offsets = index_N[stays_N], np.concatenate([[0], np.cumsum(stays_N)])[offsets]
        histories = Histories.pack(
            self.items_N[index_N],
            offsets,
            self.codes_IL.device,
            pad_to=self.pad_to,
            longest=self.longest,
            times_N=times_N,
            all_targets=self.all_targets,
            kept_NS=chosen.tokens_NS if chosen else None,
            decoded_W=chosen.decoded_W if chosen else None,
            levels=self.codes_IL.shape[1],
            least=(shape.tokens, shape.positions) if shape else (0, 0),
        )
        distinct = item_counts.of_batch(self.items_N[index_N], real, self.codes_IL.device) if item_counts else None
        return self._batch(histories, windows, offsets, factors_W, chosen, distinct)

    def _filled(
        self, shape: Shape, windows: Windows, factors_W: np.ndarray, chosen: Selected | None
    ) -> tuple[Windows, np.ndarray, Selected | None]:
        """The windows and, behind them, those that fill the batch up; their weights; what is computed of them."""
        longest = min(self.longest, len(self.items_N) - 1)
        lengths_W = shape.filling(windows.lengths_W, longest, chosen.lost if chosen else 0)
        windows += Windows(np.zeros_like(lengths_W), lengths_W)
        chosen = chosen.filled(len(lengths_W), int(lengths_W.sum())) if chosen else None
        return windows, np.pad(factors_W, (0, len(lengths_W))), chosen

    def _batch(
        self,
        histories: Histories,
        windows: Windows,
        offsets: np.ndarray,
        factors_W: np.ndarray,
        chosen: Selected | None,
        distinct: DistinctItems | None,
    ) -> Batch:
        """The histories with their targets, in packed order."""
        device = self.codes_IL.device

        def to_device(array_W: np.ndarray) -> Tensor:
            return torch.from_numpy(array_W[histories.order]).to(device)

        targets_W = to_device(self.items_N[windows.ends_W].astype(np.int64))
        weights_W = to_device(factors_W.astype(np.float32))
        batch = Batch(histories, targets_W, self.codes_IL[targets_W], weights_W, distinct)
        rows_R = histories.order
        if self.all_targets:
            batch = self._every_item_a_target(batch, windows)
            rows_R, _ = slices(offsets[histories.order], histories.lengths)
        if chosen is None:
            return batch
        return replace(
            batch,
            slots_W=torch.from_numpy(chosen.slots_W[rows_R]).to(device),
            counted_WL=torch.from_numpy(chosen.counted_WL[rows_R]).to(device),
        )

    def _every_item_a_target(self, batch: Batch, windows: Windows) -> Batch:
        """The same batch, where every item is followed by a target."""
        histories = batch.histories
        index_N, _ = slices(windows.starts_W[histories.order], histories.lengths)
        following_N = torch.from_numpy(self.items_N[index_N + 1].astype(np.int64)).to(self.codes_IL.device)
        weights_N = batch.weights_W.repeat_interleave(histories.lengths_W, output_size=len(index_N))
        return replace(batch, codes_WL=self.codes_IL[following_N], weights_W=weights_N)


def _chosen_rows(step: Step, rows_W: np.ndarray) -> Selected | None:
    if step.selected is None:
        return None
    lengths_W = step.windows.lengths_W
    return step.selected.rows(rows_W, slices((np.cumsum(lengths_W) - lengths_W)[rows_W], lengths_W[rows_W])[0])


class DistinctItemCounts:
    """Lists the distinct items of a step's batches (`DistinctItems`).

    Args:
        weigh: see `Network.items`.
        total: what the weights of the whole step add up to.
        items: of the catalogue. Counting all of them takes less time than sorting those of a batch.
    """

    def __init__(self, items_N: np.ndarray, step: Step, weigh: Literal["each", "occurrence"], total: int, items: int):
        self.weigh, self.total, self.items = weigh, total, items
        index_N, _ = slices(step.windows.starts_W, step.windows.lengths_W)
        if step.selected is not None and step.selected.stays_N is not None:
            index_N = index_N[step.selected.stays_N]
        self.counts_I = np.bincount(items_N[index_N], minlength=items)

    def of_batch(self, items_N: np.ndarray, real: int, device: torch.device) -> DistinctItems:
        """Those of the batch whose histories hold `items_N`; only the first `real` of these belong to the step."""
        items_U = np.flatnonzero(np.bincount(items_N, minlength=self.items))
        counts_U = np.bincount(items_N[:real], minlength=self.items)[items_U]
        if self.weigh == "each":  # an item that several batches share has its weight shared by occurrences
            distinct = np.count_nonzero(self.counts_I)
            weights_U = counts_U / np.maximum(self.counts_I[items_U], 1) * (self.total / distinct)
        else:
            weights_U = counts_U * (self.total / self.counts_I.sum())
        rest = rounded_up(len(items_U)) - len(items_U)
        items_U, weights_U = np.pad(items_U, (0, rest), "edge"), np.pad(weights_U, (0, rest)).astype(np.float32)
        return DistinctItems(torch.from_numpy(items_U).to(device), torch.from_numpy(weights_U).to(device))
