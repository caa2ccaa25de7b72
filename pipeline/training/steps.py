"""Cut an epoch's windows, in their order, into optimizer steps of at most `batch_tokens` encoder positions.

A step's windows are dealt into parts of about equal tokens, one per process and accumulation. The cut depends on
(seed, epoch) alone, so that a step has the same windows on one process or many.

Shape legend: W windows, N items of their histories, S tokens of one item.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.packing.batch import Selected
from pipeline.strategies.base import Weigh
from pipeline.training.windows import Epochs, Windows

CHUNK = 65_536  # windows drawn at once
FIRST_CHUNK = 8_192  # windows drawn at first, when a GPU may wait for the first step


@dataclass(frozen=True)
class Step:
    """A step holds the windows of one optimizer step, their weights, and what is computed of them.

    last: position in the epoch at which the next step begins; skipped windows between the two steps lie before it.
    """

    epoch: int
    last: int
    windows: Windows
    weights_W: np.ndarray  # float32
    selected: Selected | None = None  # None: everything is computed

    @property
    def items_W(self) -> np.ndarray:
        """Return how many items of each history enter the encoder, int64 [W]."""
        lengths_W = self.windows.lengths_W
        stays_N = self.selected.stays_N if self.selected else None
        if stays_N is None:
            return lengths_W
        # Sum the flags of each history. Lengths 2, 3 begin at 0, 2: flags 1 0 | 1 1 1 -> 1, 3
        begins_W = np.cumsum(lengths_W) - lengths_W
        return np.add.reduceat(stays_N, begins_W, dtype=np.int64)

    def tokens(self, input_tokens_per_item: int) -> int:
        """Return how many tokens enter the encoder."""
        kept_NS = self.selected.tokens_NS if self.selected else None
        if kept_NS is None:
            return int(self.items_W.sum()) * input_tokens_per_item
        return int(kept_NS.sum())


def steps_of_epoch(
    epochs: Epochs,
    epoch: int,
    first: int,
    budget: int,
    input_tokens_per_item: int,
    weigh: Weigh | None = None,
    *,
    fill: bool = True,
) -> Iterator[Step]:
    """Cut an epoch, from position `first` on, into steps of at most `budget` encoder positions.

    Each cut depends on where the step begins and on nothing before it, so a resumed run goes on with the same steps.
    A window of weight 0 is in no step. No window may be longer than the budget.

    Args:
        epochs: the windows of each epoch.
        epoch: which one is cut.
        first: position at which the first step begins.
        budget: encoder positions of a step, at most.
        input_tokens_per_item: encoder positions of an item.
        weigh: gives the windows' weights; None: all have weight 1.
        fill: windows of weight 0 take nothing of the budget. False: they do, so that the cuts are those of an epoch
            without such windows; a step that has none other is left out.
    """
    size = FIRST_CHUNK
    while first < len(epochs):
        # Draw a chunk of windows and give its full steps. The next chunk begins where these end.
        last = min(first + size, len(epochs))
        steps = _cut(epochs, epoch, first, last, budget, input_tokens_per_item, weigh if fill else None)
        yield from steps if fill else _without_skipped(steps, weigh)
        if last == len(epochs):
            return
        if steps:
            first = steps[-1].last
            size = max(size, CHUNK)
        else:
            size *= 2  # the chunk did not fill one step


def _cut(
    epochs: Epochs, epoch: int, first: int, last: int, budget: int, input_tokens_per_item: int, weigh: Weigh | None
) -> list[Step]:
    """Return the full steps within positions [first, last); at the end of the epoch also the one that is not full."""
    windows = epochs.take(epoch, first, last)
    # 1. Leave out windows of weight 0. Weights 1 0 1 1 -> kept 0, 2, 3
    weights_W = weigh(windows.starts_W, windows.ends_W) if weigh else np.ones(len(windows), np.float32)
    kept_W = np.flatnonzero(weights_W)
    windows = windows[kept_W]
    weights_W = weights_W[kept_W]
    # 2. Tokens up to the end of each window. Lengths 3, 2, 4 with 4 tokens an item -> 12, 20, 36
    tokens_W = np.cumsum(windows.lengths_W) * input_tokens_per_item
    # 3. Fill one step after another. Budget 20: windows 0 and 1 are a step, and `begin` goes on at 2 with 20 spent.
    steps: list[Step] = []
    begin = 0  # first window of the step
    spent = 0  # tokens of the steps before it
    while begin < len(kept_W):
        end = int(np.searchsorted(tokens_W, spent + budget, side="right"))  # first window that does not fit
        if end < len(kept_W):
            after = first + int(kept_W[end])
        elif last == len(epochs):
            after = last
        else:
            break  # the next chunk may hold more windows for this step
        steps.append(Step(epoch, after, windows[begin:end], weights_W[begin:end]))
        begin = end
        spent = int(tokens_W[end - 1])
    return steps


def _without_skipped(steps: list[Step], weigh: Weigh | None) -> Iterator[Step]:
    """Give the steps without their windows of weight 0; a step that has no other is left out.

    The next step's `last` stands for it, so that a run that stops between the two goes on with the next one.
    """
    for step in steps:
        if weigh is None:
            yield step
            continue
        weights_W = weigh(step.windows.starts_W, step.windows.ends_W)
        kept_W = np.flatnonzero(weights_W)
        if len(kept_W):
            yield Step(step.epoch, step.last, step.windows[kept_W], weights_W[kept_W])


def samples_per_step(epochs: Epochs, budget: int, input_tokens_per_item: int, all_targets: bool = False) -> float:
    """Estimate how many (history, target) pairs fill a step that leaves nothing out.

    The first windows of an epoch are a random sample of it: their pairs, times the share of their tokens that a step
    holds, and no more than there are.
    """
    lengths_W = epochs.take(0, 0, CHUNK).lengths_W
    items = int(lengths_W.sum())
    return (items if all_targets else len(lengths_W)) * min(1.0, budget / (items * input_tokens_per_item))
