"""From a pass over windows to the batches of each optimizer step.

A pass is cut, in its order, into steps of at most `batch_tokens` encoder positions. A step's windows are dealt into
parts of about equal tokens, one per process and accumulation; the plan depends on (seed, pass) alone, so that the
global batch is the same on one process or many.

Shape legend: W windows, N items, I items of the catalogue, L code levels, U distinct items.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.backbones.histories import Distinct, Histories, Shape, roomy, slices
from pipeline.distributed import World
from pipeline.recorded import tensors_of
from pipeline.strategies.base import Batch, Selected, Weigh
from pipeline.train.config import TrainConfig
from pipeline.train.windows import Passes, Windows

CHUNK = 65_536  # windows drawn at once
FIRST_CHUNK = 8_192  # the first time: a GPU may wait for the first step
T = TypeVar("T")
MEASURED_STEPS = 64  # of the first pass, which tell how large batches are
# By which steps of a pass may have more than its first one, of items, tokens and decoder positions: tokens fill a
# budget, but the windows that they are of come in varying numbers.
FITTED_MARGINS = (0.01, 0.015, 0.04)
# (pass, starts_W, ends_W) of a step's windows -> what is computed of them; None: everything
Select = Callable[[int, np.ndarray, np.ndarray], Selected | None]


@dataclass(frozen=True)
class Step:
    """The windows of one optimizer step; they, and windows skipped among them, end before place `last` of the pass."""

    pass_index: int
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

    def tokens(self, tokens_per_item: int) -> int:
        """Tokens that enter the encoder."""
        kept_NS = self.selected.tokens_NS if self.selected else None
        return int(self.items_W.sum()) * tokens_per_item if kept_NS is None else int(kept_NS.sum())


def steps_of_pass(
    passes: Passes, pass_index: int, first: int, budget: int, tokens_per_item: int, weigh: Weigh | None = None
) -> Iterator[Step]:
    """Cut a pass, from place `first` on, into steps of at most `budget` encoder positions.

    Each cut depends on where the step begins and on nothing before it, so a resumed run goes on with the same steps.
    A window of weight 0 is in no step. No window may be longer than the budget.
    """
    size = FIRST_CHUNK
    while first < len(passes):
        last = min(first + size, len(passes))
        steps = _cut(passes, pass_index, first, last, budget, tokens_per_item, weigh)
        yield from steps
        if last == len(passes):
            return
        first, size = (steps[-1].last, max(size, CHUNK)) if steps else (first, 2 * size)


def _cut(
    passes: Passes, pass_index: int, first: int, last: int, budget: int, tokens_per_item: int, weigh: Weigh | None
) -> list[Step]:
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


def samples_per_step(passes: Passes, budget: int, tokens_per_item: int, all_targets: bool = False) -> float:
    """How many (history, target) pairs fill a step that leaves nothing out, by the first windows of a pass, which are a
    random sample of it.
    """
    lengths_W = passes.take(0, 0, CHUNK).lengths_W
    items = int(lengths_W.sum())
    return (items if all_targets else len(lengths_W)) * min(1.0, budget / (items * tokens_per_item))


def deal(lengths_W: np.ndarray, parts: int) -> list[np.ndarray]:
    """Rows of a step dealt into `parts` of about equal tokens: longest first, back and forth. Parts may be empty."""
    order_W = np.argsort(-lengths_W, kind="stable")
    turn_W, seat_W = np.divmod(np.arange(len(order_W)), parts)
    seat_W = np.where(turn_W % 2 == 0, seat_W, parts - 1 - seat_W)
    return [np.sort(order_W[seat_W == part]) for part in range(parts)]


def common_shape(steps: Iterable[Step], parts: int, longest: int) -> Shape:
    """A shape for the batches of these steps, and for those that are a little larger."""
    return Shape.of(
        [step.windows.lengths_W[rows] for step in steps for rows in deal(step.windows.lengths_W, parts)],
        longest,
        margin=0.03,
    )


def fitted(shape: Shape, step: Step, parts: int) -> Shape:
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
    items, tokens, positions = roomy(items), roomy(tokens, bits=5), roomy(positions)  # tokens cost most
    return replace(shape, items=min(items or shape.items, shape.items), tokens=tokens, positions=positions)


def collate(
    items_N: np.ndarray,
    step: Step,
    rows_W: np.ndarray,
    codes_IL: Tensor,
    pad_to: int = 0,
    longest: int = 0,
    shape: Shape | None = None,
    times_N: np.ndarray | None = None,
    all_targets: bool = False,
    listed: "Listed | None" = None,
) -> Batch:
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
    chosen = _chosen_rows(step, rows_W)
    if shape is not None:
        lengths_W = shape.filling(windows.lengths_W, min(longest, len(items_N) - 1), chosen.lost if chosen else 0)
        windows += Windows(np.zeros_like(lengths_W), lengths_W)
        factors_W = np.pad(factors_W, (0, len(lengths_W)))
        chosen = chosen.filled(len(lengths_W), int(lengths_W.sum())) if chosen else None
    index_N, offsets = slices(windows.starts_W, windows.lengths_W)
    times_N = None if times_N is None else times_N[index_N]
    if chosen is not None and (stays_N := chosen.stays_N) is not None:
        times_N, real = None if times_N is None else times_N[stays_N], int(stays_N[:real].sum())
        index_N, offsets = index_N[stays_N], np.concatenate([[0], np.cumsum(stays_N)])[offsets]
    histories = Histories.pack(
        items_N[index_N],
        offsets,
        device,
        pad_to,
        longest,
        times_N,
        all_targets,
        chosen.tokens_NS if chosen else None,
        chosen.decoded_W if chosen else None,
        codes_IL.shape[1],
        (shape.tokens, shape.positions) if shape else (0, 0),
    )

    def to_device(array_W: np.ndarray) -> Tensor:
        return torch.from_numpy(array_W[histories.order]).to(device)

    targets_W, weights_W = to_device(items_N[windows.ends_W].astype(np.int64)), to_device(factors_W.astype(np.float32))
    distinct = listed.of(items_N[index_N], real, device) if listed else None
    batch = Batch(histories, targets_W, codes_IL[targets_W], weights_W, distinct)
    rows_R = histories.order
    if all_targets:
        batch = _all_targets(batch, items_N, windows, codes_IL)
        rows_R, _ = slices(offsets[histories.order], histories.lengths)
    if chosen is None:
        return batch
    return replace(
        batch,
        slots_W=torch.from_numpy(chosen.slots_W[rows_R]).to(device),
        counted_WL=torch.from_numpy(chosen.counted_WL[rows_R]).to(device),
    )


def _all_targets(batch: Batch, items_N: np.ndarray, windows: Windows, codes_IL: Tensor) -> Batch:
    """The same batch, where every item is followed by a target."""
    histories = batch.histories
    index_N, _ = slices(windows.starts_W[histories.order], histories.lengths)
    following_N = torch.from_numpy(items_N[index_N + 1].astype(np.int64)).to(codes_IL.device)
    weights_N = batch.weights_W.repeat_interleave(histories.lengths_W, output_size=len(index_N))
    return replace(batch, codes_WL=codes_IL[following_N], weights_W=weights_N)


def _chosen_rows(step: Step, rows_W: np.ndarray) -> Selected | None:
    if step.selected is None:
        return None
    lengths_W = step.windows.lengths_W
    return step.selected.rows(rows_W, slices((np.cumsum(lengths_W) - lengths_W)[rows_W], lengths_W[rows_W])[0])


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
        if step.selected is not None and step.selected.stays_N is not None:
            index_N = index_N[step.selected.stays_N]
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

    def __init__(
        self,
        passes: Passes,
        items_N: np.ndarray,
        codes_IL: Tensor,
        config: TrainConfig,
        world: World,
        tokens_per_item: int,
        pad_to: int = 0,
        times_N: np.ndarray | None = None,
        items: Literal["unlisted", "each", "occurrence"] = "unlisted",
    ):
        self.passes, self.items_N, self.codes_IL, self.budget = passes, items_N, codes_IL, config.batch_tokens
        self.tokens_per_item, self.pad_to, self.items = tokens_per_item, pad_to, items
        self.times_N, self.all_targets = times_N, config.targets == "all"
        self.parts = world.size * config.accumulate
        self.own = range(world.rank * config.accumulate, (world.rank + 1) * config.accumulate)  # parts of this process
        self.shape: Shape | None = None
        if codes_IL.is_cuda and config.compile:
            steps = steps_of_pass(passes, 0, 0, self.budget, tokens_per_item)
            self.shape = common_shape(itertools.islice(steps, MEASURED_STEPS), self.parts, passes.max_history)

    def rest_of_pass(
        self, pass_index: int, first: int, weigh: Weigh | None, select: Select | None = None
    ) -> Iterator[Prepared]:
        """The steps of a pass from place `first` on; on a GPU the next one is prepared while it works on this one."""
        batches = self._prepared(pass_index, first, weigh, select)
        return beside(batches, self.codes_IL.device) if self.codes_IL.is_cuda else batches

    def _prepared(self, pass_index: int, first: int, weigh: Weigh | None, select: Select | None) -> Iterator[Prepared]:
        shape: Shape | None = None
        for step in self._chosen(pass_index, first, weigh, select):
            if shape is None and self.shape is not None:
                # That of the whole pass, wherever in it a run goes on: how sums are rounded may depend on sizes
                whole = step if first == 0 else next(self._chosen(pass_index, 0, weigh, select))
                shape = fitted(self.shape, whole, self.parts)
            yield step, self._batches(step, shape)

    def _chosen(self, pass_index: int, first: int, weigh: Weigh | None, select: Select | None) -> Iterator[Step]:
        for step in steps_of_pass(self.passes, pass_index, first, self.budget, self.tokens_per_item, weigh):
            yield (
                step
                if select is None
                else replace(step, selected=select(pass_index, step.windows.starts_W, step.windows.ends_W))
            )

    def first_windows(self) -> Windows:
        """Of a run's first step, over all processes, where nothing is skipped."""
        return next(steps_of_pass(self.passes, 0, 0, self.budget, self.tokens_per_item)).windows

    def samples(self, step: Step) -> int:
        """(history, target) pairs of a step."""
        return int(step.windows.lengths_W.sum()) if self.all_targets else len(step.windows)

    def _batches(self, step: Step, shape: Shape | None) -> list[Batch]:
        parts = deal(step.windows.lengths_W, self.parts)
        listed = (
            None
            if self.items == "unlisted"
            else Listed(self.items_N, step, self.items, self.samples(step), len(self.codes_IL))
        )
        return [
            collate(
                self.items_N,
                step,
                parts[part],
                self.codes_IL,
                self.pad_to,
                self.passes.max_history,
                shape,
                self.times_N,
                self.all_targets,
                listed,
            )
            for part in self.own
        ]


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
