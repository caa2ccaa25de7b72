"""Make batches on the device from the windows of a step.

Shape legend: W windows, N items of a batch's histories, M interactions of the splits, I items of the catalogue, L code
levels, U distinct items of a batch, S tokens of one item, R targets of a batch: one per window, or one per item;
local: A columns of actions.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.distributed import deal
from pipeline.packing.batch import Batch, Selected
from pipeline.packing.histories import DistinctItems, Histories, slices
from pipeline.packing.shape import Shape, rounded_up
from pipeline.training.negatives import Negatives
from pipeline.training.steps import Step
from pipeline.training.windows import Windows

# Safety margins over the first step's counts of items, tokens and decoder positions. Tokens fill a budget, while the
# number of windows that hold them varies from step to step.
FITTED_MARGINS = (0.01, 0.015, 0.04)
WeighItems = Literal["unlisted", "each", "occurrence"]


def common_shape(steps: Iterable[Step], parts: int, longest: int) -> Shape:
    """Return a shape that holds the batches of these steps, and batches that are a little larger."""
    return Shape.of(
        [step.windows.lengths_W[rows] for step in steps for rows in deal(step.windows.lengths_W, parts)],
        longest,
        margin=0.03,
    )


def fitted_shape(shape: Shape, step: Step, parts: int) -> Shape:
    """Shrink `shape` to what batches need if they drop as many tokens as `step`, the first one of an epoch."""
    needs = []
    for rows in deal(step.windows.lengths_W, parts):
        chosen = _chosen_rows(step, rows)
        if chosen is None:
            return shape
        # Each window that fills the batch up adds one item, token and decoder position. 0: all of them are computed.
        filling = max(shape.windows - len(rows), 0)
        needs.append(
            [
                0 if array is None else int((array.sum() + filling) * (1 + margin)) + 1
                for array, margin in zip(
                    (chosen.stays_N, chosen.tokens_NS, chosen.decoded_W), FITTED_MARGINS, strict=True
                )
            ]
        )
    # The fullest part decides, rounded up to one of few sizes. Tokens cost most, so their sizes are finer.
    items, tokens, positions = np.max(needs, 0).tolist()
    return replace(
        shape,
        items=min(rounded_up(items) or shape.items, shape.items),
        tokens=rounded_up(tokens, bits=5),
        positions=rounded_up(positions),
    )


class Collator:
    """Make batches of the windows of a step, on the device of `codes_IL`.

    Args:
        items_M: the splits' items; windows point into it.
        codes_IL: the catalogue's codes.
        times_M: the times of the splits in seconds, for a backbone that wants them.
        pad_to: encoder positions of every window of a padded batch, 0 for packed.
        longest: bound of a window's items; 0: each batch's longest window.
        all_targets: every item of a window but the first is a target too.
        weigh_items: see `Network.items`.
        negatives: what stands for the catalogue in a batch's softmax; None: all items.
        actions_MA: the actions of the splits, for a backbone that reads and predicts them.
        predicts_items: the tokens of a target are its codes; False: its actions.
    """

    def __init__(  # noqa: PLR0913 - all but two by keyword
        self,
        items_M: np.ndarray,
        codes_IL: Tensor,
        *,
        times_M: np.ndarray | None = None,
        pad_to: int = 0,
        longest: int = 0,
        all_targets: bool = False,
        weigh_items: WeighItems = "unlisted",
        negatives: Negatives | None = None,
        actions_MA: np.ndarray | None = None,
        predicts_items: bool = True,
    ):
        self.items_M = items_M
        self.codes_IL = codes_IL
        self.times_M = times_M
        self.pad_to = pad_to
        self.longest = longest
        self.all_targets = all_targets
        self.weigh_items = weigh_items
        self.negatives = negatives
        self.actions_MA = actions_MA
        self.predicts_items = predicts_items

    def samples(self, step: Step) -> int:
        """Return the number of (history, target) pairs of a step."""
        return int(step.windows.lengths_W.sum()) if self.all_targets else len(step.windows)

    def count_items(self, step: Step) -> "DistinctItemCounts | None":
        """Count the items of a step, for the lists of distinct items of its batches; None: the network wants none."""
        if self.weigh_items == "unlisted":
            return None
        return DistinctItemCounts(self.items_M, step, self.weigh_items, self.samples(step), len(self.codes_IL))

    def __call__(
        self,
        step: Step,
        rows_W: np.ndarray,
        *,
        part: int = 0,
        shape: Shape | None = None,
        item_counts: "DistinctItemCounts | None" = None,
    ) -> Batch:
        """Make a batch of the windows `rows_W` of a step.

        Without rows the batch is the step's first window at weight zero: every process must take part in each exchange
        of gradients. Windows that fill the batch up to `shape` have weight zero too.

        Args:
            part: the number of this batch among all of the step.
        """
        # 1. Choose the windows. `real`: how many of the batch's items belong to the step; items that only fill the
        # batch lie behind them.
        if len(rows_W) == 0:
            rows_W = np.zeros(1, np.int64)
            factors_W = np.zeros(1, np.float32)
            real = 0
        else:
            factors_W = step.weights_W[rows_W]
            real = int(step.windows.lengths_W[rows_W].sum())
        windows = step.windows[rows_W]
        chosen = _chosen_rows(step, rows_W)
        if shape is not None:
            windows, factors_W, chosen = self._filled(shape, windows, factors_W, chosen)
        # 2. List the items of the histories by their flat positions in the splits.
        # Starts 7, 2 and lengths 2, 3 -> index 7 8 2 3 4, offsets 0 2 5
        index_N, offsets = slices(windows.starts_W, windows.lengths_W)
        # 3. Leave out the items that the strategy drops. Flags 1 0 1 1 1 -> index 7 2 3 4, offsets 0 1 4
        if chosen is not None and (stays_N := chosen.stays_N) is not None:
            real = int(stays_N[:real].sum())
            index_N = index_N[stays_N]
            offsets = np.concatenate([[0], np.cumsum(stays_N)])[offsets]
        # 4. Pack them, and add targets, weights and the list of distinct items.
        histories = Histories.pack(
            self.items_M[index_N],
            offsets,
            self.codes_IL.device,
            pad_to=self.pad_to,
            longest=self.longest,
            times_N=None if self.times_M is None else self.times_M[index_N],
            actions_NA=None if self.actions_MA is None else self.actions_MA[index_N],
            all_targets=self.all_targets,
            kept_NS=chosen.tokens_NS if chosen else None,
            decoded_W=chosen.decoded_W if chosen else None,
            levels=self.codes_IL.shape[1],
            least=(shape.tokens, shape.positions) if shape else (0, 0),
        )
        distinct = item_counts.of_batch(self.items_M[index_N], real, self.codes_IL.device) if item_counts else None
        batch = self._batch(histories, windows, offsets, factors_W, chosen, distinct)
        return self.negatives.sampled(batch, step.epoch, step.last, part) if self.negatives else batch

    def _filled(
        self, shape: Shape, windows: Windows, factors_W: np.ndarray, chosen: Selected | None
    ) -> tuple[Windows, np.ndarray, Selected | None]:
        """Append windows that fill the batch up to `shape`: their history is the splits' first items, their weight 0.

        Returns:
            All windows, their weights, and what is computed of them.
        """
        longest = min(self.longest, len(self.items_M) - 1)
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
        """Join the packed histories with their targets; windows, offsets, factors and chosen are in input order."""
        device = self.codes_IL.device

        def to_device(array_W: np.ndarray) -> Tensor:
            return torch.from_numpy(array_W[histories.order]).to(device)

        # 1. One target per window, in packed order. Lengths 2, 1 are packed in the order 1, 0.
        targets_W = to_device(self.items_M[windows.ends_W].astype(np.int64))
        weights_W = to_device(factors_W.astype(np.float32))
        batch = Batch(
            histories=histories,
            targets_W=targets_W,
            codes_WL=self.codes_IL[targets_W],
            actions_WA=None if self.actions_MA is None else to_device(self.actions_MA[windows.ends_W].astype(np.int64)),
            weights_W=weights_W,
            distinct=distinct,
        )
        # 2. Rows of `chosen` that belong to the targets, in packed order: windows, or their items.
        # Offsets 0, 2, 3 in the order 1, 0 -> rows 2 | 0 1
        rows_R = histories.order
        if self.all_targets:
            batch = self._every_item_a_target(batch, windows)
            rows_R, _ = slices(offsets[histories.order], histories.lengths)
        if not self.predicts_items:
            assert batch.actions_WA is not None
            batch = replace(batch, codes_WL=batch.actions_WA)
        if chosen is None:
            return batch
        # 3. What the strategy said of each target.
        return replace(
            batch,
            slots_W=torch.from_numpy(chosen.slots_W[rows_R]).to(device),
            counted_WL=torch.from_numpy(chosen.counted_WL[rows_R]).to(device),
        )

    def _every_item_a_target(self, batch: Batch, windows: Windows) -> Batch:
        """Replace the batch's codes and weights by a row per item: the item after it is its target."""
        histories = batch.histories
        # A window of items 5 6 7 with target 8 has the targets 6 7 8, each with the window's weight.
        index_N, _ = slices(windows.starts_W[histories.order], histories.lengths)
        following_N = torch.from_numpy(self.items_M[index_N + 1].astype(np.int64)).to(self.codes_IL.device)
        weights_N = batch.weights_W.repeat_interleave(histories.lengths_W, output_size=len(index_N))
        actions_NA = None
        if self.actions_MA is not None:
            actions_NA = torch.from_numpy(self.actions_MA[index_N + 1].astype(np.int64)).to(self.codes_IL.device)
        return replace(batch, codes_WL=self.codes_IL[following_N], actions_WA=actions_NA, weights_W=weights_N)


def _chosen_rows(step: Step, rows_W: np.ndarray) -> Selected | None:
    """Return what is computed of the windows `rows_W` of a step; None: everything."""
    if step.selected is None:
        return None
    # Items of the chosen windows among those of the step. Lengths 2, 1, 3 begin at 0, 2, 3: rows 2, 0 -> 3 4 5 | 0 1
    lengths_W = step.windows.lengths_W
    begins_W = np.cumsum(lengths_W) - lengths_W
    index_N, _ = slices(begins_W[rows_W], lengths_W[rows_W])
    return step.selected.rows(rows_W, index_N)


class DistinctItemCounts:
    """List the distinct items of a step's batches, with their weights (`DistinctItems`).

    Args:
        weigh: see `Network.items`.
        total: sum of the weights of the whole step.
        items: items of the catalogue. Counting all of them takes less time than sorting those of a batch.
    """

    def __init__(self, items_M: np.ndarray, step: Step, weigh: Literal["each", "occurrence"], total: int, items: int):
        self.weigh = weigh
        self.total = total
        self.items = items
        index_N, _ = slices(step.windows.starts_W, step.windows.lengths_W)
        if step.selected is not None and step.selected.stays_N is not None:
            index_N = index_N[step.selected.stays_N]
        self.counts_I = np.bincount(items_M[index_N], minlength=items)  # over all batches of the step

    def of_batch(self, items_N: np.ndarray, real: int, device: torch.device) -> DistinctItems:
        """List the distinct items of a batch.

        Args:
            items_N: items of the batch's histories; only the first `real` of these belong to the step.
        """
        # Items 7 3 7 3, real 3 -> distinct 3, 7 with 1 and 2 occurrences
        items_U = np.flatnonzero(np.bincount(items_N, minlength=self.items))
        counts_U = np.bincount(items_N[:real], minlength=self.items)[items_U]
        if self.weigh == "each":
            # Every distinct item of the step weighs the same. Batches that hold one item share its weight by
            # occurrences: 1 of 4 here -> a quarter of it.
            distinct = np.count_nonzero(self.counts_I)
            weights_U = counts_U / np.maximum(self.counts_I[items_U], 1) * (self.total / distinct)
        else:
            weights_U = counts_U * (self.total / self.counts_I.sum())
        # Repeat the last item, at weight 0, up to one of few sizes.
        rest = rounded_up(len(items_U)) - len(items_U)
        items_U = np.pad(items_U, (0, rest), "edge")
        weights_U = np.pad(weights_U, (0, rest)).astype(np.float32)
        return DistinctItems(torch.from_numpy(items_U).to(device), torch.from_numpy(weights_U).to(device))
