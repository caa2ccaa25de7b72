"""From a pass over windows to the batches of each optimizer step.

A pass is cut, in its order, into steps of at most `batch_tokens` encoder positions. A step's windows are dealt into
parts of about equal tokens, one per process and accumulation; the plan depends on (seed, pass) alone, so that the
global batch is the same on one process or many.

Shape legend: W windows, N items, I items of the catalogue, L code levels, U distinct items.
"""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.backbones.histories import Distinct, Histories, Shape, roomy
from pipeline.ranking import slices
from pipeline.recorded import tensors_of
from pipeline.strategies.base import Batch, Weigh
from pipeline.train.config import TrainConfig
from pipeline.train.distributed import World
from pipeline.train.windows import Passes, Windows

CHUNK = 65_536  # windows drawn at once
T = TypeVar("T")
MEASURED_STEPS = 64  # of the first pass, which tell how large batches are


@dataclass(frozen=True)
class Step:
    """The windows of one optimizer step; they, and windows skipped among them, end before place `last` of the pass."""

    pass_index: int
    last: int
    windows: Windows
    weights_W: np.ndarray


def steps_of_pass(passes: Passes, pass_index: int, first: int, budget: int, tokens_per_item: int,
                  weigh: Weigh | None = None) -> Iterator[Step]:
    """Cut a pass, from place `first` on, into steps of at most `budget` encoder positions.

    Each cut depends on where the step begins and on nothing before it, so a resumed run goes on with the same steps.
    A window of weight 0 is in no step. No window may be longer than the budget.
    """
    size = CHUNK
    while first < len(passes):
        last = min(first + size, len(passes))
        steps = _cut(passes, pass_index, first, last, budget, tokens_per_item, weigh)
        yield from steps
        if last == len(passes):
            return
        first, size = (steps[-1].last, size) if steps else (first, 2 * size)


def _cut(passes: Passes, pass_index: int, first: int, last: int, budget: int, tokens_per_item: int,
         weigh: Weigh | None) -> list[Step]:
    """The full steps within places [first, last); at the end of the pass also the one that is not full."""
    windows = passes.take(pass_index, first, last)
    weights_W = weigh(windows.starts_W, windows.ends_W) if weigh else np.ones(len(windows), np.float32)
    kept_W = np.flatnonzero(weights_W)
    windows, weights_W = windows[kept_W], weights_W[kept_W]
    tokens_W = np.cumsum(windows.lengths_W) * tokens_per_item
    steps: list[Step] = []
    begin, spent = 0, 0
    while begin < len(kept_W):
        end = int(np.searchsorted(tokens_W, spent + budget, side="right"))
        if end < len(kept_W):
            after = first + int(kept_W[end])
        elif last == len(passes):
            after = last
        else:
            break  # whether more windows fit, only the next chunk tells
        steps.append(Step(pass_index, after, windows[begin:end], weights_W[begin:end]))
        begin, spent = end, int(tokens_W[end - 1])
    return steps


def deal(lengths_W: np.ndarray, parts: int) -> list[np.ndarray]:
    """Rows of a step dealt into `parts` of about equal tokens: longest first, back and forth. Parts may be empty."""
    order_W = np.argsort(-lengths_W, kind="stable")
    turn_W, seat_W = np.divmod(np.arange(len(order_W)), parts)
    seat_W = np.where(turn_W % 2 == 0, seat_W, parts - 1 - seat_W)
    return [np.sort(order_W[seat_W == part]) for part in range(parts)]


def common_shape(steps: Iterable[Step], parts: int) -> Shape:
    """A shape for the batches of these steps, and for those that are a little larger."""
    return Shape.of([step.windows.lengths_W[rows] for step in steps for rows in deal(step.windows.lengths_W, parts)],
                    margin=0.03)


def collate(items_N: np.ndarray, step: Step, rows_W: np.ndarray, codes_IL: Tensor, pad_to: int = 0,
            longest: int = 0, shape: Shape | None = None, times_N: np.ndarray | None = None,
            all_targets: bool = False, listed: "Listed | None" = None) -> Batch:
    """The windows `rows_W` of a step as a batch on the device of `codes_IL`.

    Args:
        times_N: the splits' timestamps, for a backbone that wants them.
        all_targets: every item of a window but the first is a target too.
        listed: lists the batch's distinct items as well.

    Without rows the batch is the step's first window at weight zero: every process must take part in each exchange of
    gradients. Windows that fill it up to `shape` have weight zero too.
    """
    if len(rows_W) == 0:
        rows_W, factors_W, real = np.zeros(1, np.int64), np.zeros(1, np.float32), 0
    else:
        real = int(step.windows.lengths_W[rows_W].sum())  # items, but for those of windows that only fill
        factors_W = step.weights_W[rows_W]
    windows, device = step.windows[rows_W], codes_IL.device
    if shape is not None:
        lengths_W = shape.filling(windows.lengths_W, min(longest, len(items_N) - 1))
        windows += Windows(np.zeros_like(lengths_W), lengths_W)
        factors_W = np.pad(factors_W, (0, len(windows) - len(factors_W)))
    index_N, offsets = slices(windows.starts_W, windows.lengths_W)
    histories = Histories.pack(items_N[index_N], offsets, device, pad_to, longest,
                               None if times_N is None else times_N[index_N], all_targets)
    targets_W = torch.from_numpy(items_N[windows.ends_W][histories.order].astype(np.int64)).to(device)
    weights_W = torch.from_numpy(factors_W[histories.order].astype(np.float32)).to(device)
    distinct = listed.of(items_N[index_N], real, device) if listed else None
    if not all_targets:
        return Batch(histories, targets_W, codes_IL[targets_W], weights_W, distinct)
    index_N, _ = slices(windows.starts_W[histories.order], histories.lengths)
    following_N = torch.from_numpy(items_N[index_N + 1].astype(np.int64)).to(device)
    weights_N = weights_W.repeat_interleave(histories.lengths_W, output_size=len(index_N))
    return Batch(histories, targets_W, codes_IL[following_N], weights_N, distinct)


class Listed:
    """Lists the distinct items of a step's batches (`Distinct`).

    Args:
        weigh: see `Strategy.items`.
        total: what the weights of the whole step add up to.
        items: of the catalogue. Counting all of them takes less time than sorting those of a batch.
    """

    def __init__(self, items_N: np.ndarray, step: Step, weigh: Literal["each", "occurrence"], total: int, items: int):
        self.weigh, self.total, self.items = weigh, total, items
        index_N, _ = slices(step.windows.starts_W, step.windows.lengths_W)
        self.counts_I = np.bincount(items_N[index_N], minlength=items)

    def of(self, items_N: np.ndarray, real: int, device: torch.device) -> Distinct:
        """Those of the batch whose histories hold `items_N`; only the first `real` of these belong to the step."""
        items_U = np.flatnonzero(np.bincount(items_N, minlength=self.items))
        counts_U = np.bincount(items_N[:real], minlength=self.items)[items_U]
        if self.weigh == "each":  # an item that several batches share has its weight shared by occurrences
            distinct = np.count_nonzero(self.counts_I)
            weights_U = counts_U / np.maximum(self.counts_I[items_U], 1) * (self.total / distinct)
        else:
            weights_U = counts_U * (self.total / self.counts_I.sum())
        rest = roomy(len(items_U)) - len(items_U)
        items_U, weights_U = np.pad(items_U, (0, rest), "edge"), np.pad(weights_U, (0, rest)).astype(np.float32)
        return Distinct(torch.from_numpy(items_U).to(device), torch.from_numpy(weights_U).to(device))


Prepared = tuple[Step, list[Batch]]  # a step and this process's batches of it


class Feed:
    """This process's batches of every step, in the order of training.

    Args:
        items_N: the splits' items; windows point into it.
        codes_IL: the catalogue's, on the device that trains.
        tokens_per_item: encoder positions of one item, its separator included.
        pad_to: encoder positions of every window of a padded run, 0 for packed.
        times_N: the splits' timestamps, for a backbone that wants them.
        items: see `Strategy.items`.
    """

    def __init__(self, passes: Passes, items_N: np.ndarray, codes_IL: Tensor, config: TrainConfig, world: World,
                 tokens_per_item: int, pad_to: int = 0, times_N: np.ndarray | None = None,
                 items: Literal["unlisted", "each", "occurrence"] = "unlisted"):
        self.passes, self.items_N, self.codes_IL, self.budget = passes, items_N, codes_IL, config.batch_tokens
        self.tokens_per_item, self.pad_to, self.items = tokens_per_item, pad_to, items
        self.times_N, self.all_targets = times_N, config.targets == "all"
        self.parts = world.size * config.accumulate
        self.own = range(world.rank * config.accumulate, (world.rank + 1) * config.accumulate)  # parts of this process
        self.shape: Shape | None = None
        if codes_IL.is_cuda and config.compile:
            steps = steps_of_pass(passes, 0, 0, self.budget, tokens_per_item)
            self.shape = common_shape(itertools.islice(steps, MEASURED_STEPS), self.parts)

    def rest_of_pass(self, pass_index: int, first: int, weigh: Weigh | None) -> Iterator[Prepared]:
        """The steps of a pass from place `first` on; on a GPU the next one is prepared while it works on this one."""
        steps = steps_of_pass(self.passes, pass_index, first, self.budget, self.tokens_per_item, weigh)
        batches = ((step, self._batches(step)) for step in steps)
        return beside(batches, self.codes_IL.device) if self.codes_IL.is_cuda else batches

    def samples(self, step: Step) -> int:
        """(history, target) pairs of a step."""
        return int(step.windows.lengths_W.sum()) if self.all_targets else len(step.windows)

    def _batches(self, step: Step) -> list[Batch]:
        parts = deal(step.windows.lengths_W, self.parts)
        listed = None if self.items == "unlisted" else Listed(self.items_N, step, self.items, self.samples(step),
                                                              len(self.codes_IL))
        return [collate(self.items_N, step, parts[part], self.codes_IL, self.pad_to, self.passes.max_history,
                        self.shape, self.times_N, self.all_targets, listed) for part in self.own]


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is prepared in a thread while the caller works on this one."""
    done: Any = object()
    with ThreadPoolExecutor(1) as worker:
        pending = worker.submit(next, items, done)
        while (item := pending.result()) is not done:
            pending = worker.submit(next, items, done)
            yield item


def beside(steps: Iterator[Prepared], device: torch.device) -> Iterator[Prepared]:
    """The same steps, the next one prepared ahead and on a stream of its own, so that it does not wait for this one."""
    stream, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def prepare() -> Iterator[tuple[Prepared, torch.cuda.Event]]:
        while True:
            with torch.cuda.stream(stream):
                step = next(steps, None)
            if step is None:
                return
            yield step, stream.record_event()

    for step, ready in ahead(prepare()):
        main.wait_event(ready)
        for tensor in (tensor for batch in step[1] for tensor in tensors_of(batch)):
            tensor.record_stream(main)
        yield step
