"""A pass over windows, cut in its order into optimizer steps of at most `batch_tokens` encoder positions.

A step's windows are dealt into parts of about equal tokens, one per process and accumulation. The plan depends on
(seed, pass) alone, so that the global batch is the same on one process or many.

Shape legend: W windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.packing.batch import Selected
from pipeline.strategies.base import Weigh
from pipeline.training.windows import Epochs, Windows

CHUNK = 65_536  # windows drawn at once
FIRST_CHUNK = 8_192  # the first time: a GPU may wait for the first step


@dataclass(frozen=True)
class Step:
    """The windows of one optimizer step; they, and windows skipped among them, end before place `last` of the pass."""

    epoch: int
    last: int
    windows: Windows
    weights_W: np.ndarray
    selected: Selected | None = None  # None: all of it

    @property
    def items_W(self) -> np.ndarray:
        """Items of each history that enter the encoder."""
        lengths_W = self.windows.lengths_W
        stays_N = self.selected.stays_N if self.selected else None
        return (
            lengths_W if stays_N is None else np.add.reduceat(stays_N, np.cumsum(lengths_W) - lengths_W, dtype=np.int64)
        )

    def tokens(self, input_tokens_per_item: int) -> int:
        """Tokens that enter the encoder."""
        kept_NS = self.selected.tokens_NS if self.selected else None
        return int(self.items_W.sum()) * input_tokens_per_item if kept_NS is None else int(kept_NS.sum())


def steps_of_epoch(
    epochs: Epochs, epoch: int, first: int, budget: int, input_tokens_per_item: int, weigh: Weigh | None = None
) -> Iterator[Step]:
    """Cut a pass, from place `first` on, into steps of at most `budget` encoder positions.

    Each cut depends on where the step begins and on nothing before it, so a resumed run goes on with the same steps.
    A window of weight 0 is in no step. No window may be longer than the budget.
    """
    size = FIRST_CHUNK
    while first < len(epochs):
        last = min(first + size, len(epochs))
        steps = _cut(epochs, epoch, first, last, budget, input_tokens_per_item, weigh)
        yield from steps
        if last == len(epochs):
            return
        first, size = (steps[-1].last, max(size, CHUNK)) if steps else (first, 2 * size)


def _cut(
    epochs: Epochs, epoch: int, first: int, last: int, budget: int, input_tokens_per_item: int, weigh: Weigh | None
) -> list[Step]:
    """The full steps within places [first, last); at the end of the pass also the one that is not full."""
    windows = epochs.take(epoch, first, last)
    weights_W = weigh(windows.starts_W, windows.ends_W) if weigh else np.ones(len(windows), np.float32)
    kept_W = np.flatnonzero(weights_W)
    windows, weights_W = windows[kept_W], weights_W[kept_W]
    tokens_W = np.cumsum(windows.lengths_W) * input_tokens_per_item
    steps: list[Step] = []
    begin, spent = 0, 0
    while begin < len(kept_W):
        end = int(np.searchsorted(tokens_W, spent + budget, side="right"))
        if end < len(kept_W):
            after = first + int(kept_W[end])
        elif last == len(epochs):
            after = last
        else:
            break  # whether more windows fit, only the next chunk tells
        steps.append(Step(epoch, after, windows[begin:end], weights_W[begin:end]))
        begin, spent = end, int(tokens_W[end - 1])
    return steps


def samples_per_step(epochs: Epochs, budget: int, input_tokens_per_item: int, all_targets: bool = False) -> float:
    """How many (history, target) pairs fill a step that leaves nothing out, by the first windows of a pass, which are a
    random sample of it.
    """
    lengths_W = epochs.take(0, 0, CHUNK).lengths_W
    items = int(lengths_W.sum())
    return (items if all_targets else len(lengths_W)) * min(1.0, budget / (items * input_tokens_per_item))


def deal(lengths_W: np.ndarray, parts: int) -> list[np.ndarray]:
    """Rows of a step dealt into `parts` of about equal tokens: longest first, back and forth. Parts may be empty."""
    order_W = np.argsort(-lengths_W, kind="stable")
    turn_W, seat_W = np.divmod(np.arange(len(order_W)), parts)
    seat_W = np.where(turn_W % 2 == 0, seat_W, parts - 1 - seat_W)
    return [np.sort(order_W[seat_W == part]) for part in range(parts)]
