"""Give the batches of every step that one process trains on; on a GPU, prepare the next step beside the current one.

Shape legend: W windows of a step.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.cuda_graphs import can_record, tensors_of
from pipeline.distributed import World, deal
from pipeline.packing.batch import Batch, Selected
from pipeline.packing.shape import Shape
from pipeline.strategies.base import Weigh
from pipeline.training.collate import Collator, common_shape, fitted_shape
from pipeline.training.steps import Step, steps_of_epoch
from pipeline.training.windows import Epochs, Windows

T = TypeVar("T")
MEASURED_STEPS = 64  # of the first epoch: their windows decide how large batches are
# (epoch, starts_W, ends_W) of a step's windows -> what is computed of them; None: everything
Select = Callable[[int, np.ndarray, np.ndarray], Selected | None]
StepBatches = tuple[Step, list[Batch]]  # a step and this process's batches of it


class BatchLoader:
    """Give this process's batches of every step, in the order of training.

    Args:
        budget: encoder positions of a step, where an item takes `input_tokens_per_item`.
        input_tokens_per_item: encoder positions of one item, its separator included.
        accumulate: parts that each process splits a step into.
        fill: fill batches up to few shapes, for a step that is recorded.
    """

    def __init__(
        self,
        epochs: Epochs,
        collator: Collator,
        world: World,
        *,
        budget: int,
        input_tokens_per_item: int,
        accumulate: int = 1,
        fill: bool = False,
    ):
        self.epochs = epochs
        self.collator = collator
        self.budget = budget
        self.fill_steps = True  # `Sampler.fills_steps` of the run
        self.input_tokens_per_item = input_tokens_per_item
        self.device = collator.codes_IL.device
        # A step is dealt into parts for all processes. 2 processes, accumulate 3: rank 1 has parts 3, 4, 5 of 6.
        self.parts = world.size * accumulate
        self.process_parts = range(world.rank * accumulate, (world.rank + 1) * accumulate)
        self.shape: Shape | None = None
        if fill:
            steps = steps_of_epoch(epochs, 0, 0, budget, input_tokens_per_item)
            self.shape = common_shape(itertools.islice(steps, MEASURED_STEPS), self.parts, epochs.max_history)

    def draw_ahead(self, epoch: int) -> None:
        """Draw the windows that an epoch begins with, which do not depend on what a strategy decides.

        Called while a GPU is at work on the last steps of the epoch before, so that it waits less for the first step.
        """
        if self.shape is not None:
            steps = steps_of_epoch(self.epochs, epoch, 0, self.budget, self.input_tokens_per_item)
            # Only where steps are not filled up, the shape of the epoch's batches is measured (`_whole_shape`).
            for _ in itertools.islice(steps, 1 if self.fill_steps else MEASURED_STEPS):
                pass

    def rest_of_epoch(
        self, epoch: int, first: int, weigh: Weigh | None, select: Select | None = None
    ) -> Iterator[StepBatches]:
        """Give the steps of an epoch from position `first` on, with their batches.

        On a GPU the next step's batches are prepared while the GPU works on the current ones.
        """
        batches = self._prepared(epoch, first, weigh, select)
        return prefetched_on_stream(batches, self.device) if can_record(self.device) else batches

    def _prepared(self, epoch: int, first: int, weigh: Weigh | None, select: Select | None) -> Iterator[StepBatches]:
        shape: Shape | None = None
        for step in self._chosen(epoch, first, weigh, select):
            if shape is None and self.shape is not None:
                # Always sized from the epoch's first step, also after a resume: rounding depends on tensor sizes.
                whole = step if first == 0 else next(self._chosen(epoch, 0, weigh, select))
                shape = fitted_shape(self._whole_shape(epoch, weigh), whole, self.parts)
            yield step, self._batches(step, shape)

    def _whole_shape(self, epoch: int, weigh: Weigh | None) -> Shape:
        """Return what batches of an epoch need where all of their windows' tokens are computed.

        Steps that are filled up are as large as those of `full`. Others are smaller where windows are skipped, and so
        is the shape, by the epoch's first steps.
        """
        assert self.shape is not None
        if self.fill_steps or weigh is None:
            return self.shape
        steps = steps_of_epoch(self.epochs, epoch, 0, self.budget, self.input_tokens_per_item, weigh, fill=False)
        shape = common_shape(itertools.islice(steps, MEASURED_STEPS), self.parts, self.epochs.max_history)
        return shape if shape.windows < self.shape.windows else self.shape

    def _chosen(self, epoch: int, first: int, weigh: Weigh | None, select: Select | None) -> Iterator[Step]:
        """Give the steps from position `first` on, with what `select` computes of each."""
        for step in steps_of_epoch(
            self.epochs, epoch, first, self.budget, self.input_tokens_per_item, weigh, fill=self.fill_steps
        ):
            if select is None:
                yield step
            else:
                yield replace(step, selected=select(epoch, step.windows.starts_W, step.windows.ends_W))

    def first_windows(self) -> Windows:
        """Return the windows of a run's first step, over all processes, where nothing is skipped."""
        return next(steps_of_epoch(self.epochs, 0, 0, self.budget, self.input_tokens_per_item)).windows

    def _batches(self, step: Step, shape: Shape | None) -> list[Batch]:
        """Make this process's batches of a step."""
        parts = deal(step.windows.lengths_W, self.parts)
        # Items are counted over the whole step, so that their weights do not depend on how it is dealt.
        item_counts = self.collator.count_items(step)
        return [
            self.collator(step, parts[part], part=part, shape=shape, item_counts=item_counts)
            for part in self.process_parts
        ]


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """Give the same items; a thread prepares the next item while the caller works on the current one."""
    done: Any = object()  # what `next` gives after the last item
    with ThreadPoolExecutor(1) as worker:
        pending = worker.submit(next, items, done)
        while (item := pending.result()) is not done:
            pending = worker.submit(next, items, done)  # begins before the caller gets `item`
            yield item


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which batches are prepared, one for all epochs and runs of this process.

    PyTorch gives out the same 32 streams in turn. With a new stream for every epoch, one of the next 32 epochs would
    prepare its batches on the stream on which a step is being recorded, and CUDA refuses copies there.
    """
    return torch.cuda.Stream(device)


def prefetched_on_stream(steps: Iterator[StepBatches], device: torch.device) -> Iterator[StepBatches]:
    """Give the same steps; the next step is prepared ahead on a second stream, without waiting for the current one."""
    side = _side_stream(device)
    main = torch.cuda.current_stream(device)

    def prepare() -> Iterator[tuple[StepBatches, torch.cuda.Event]]:
        # Runs in the worker thread: copies to the GPU go to the side stream, and an event marks their end.
        while True:
            with torch.cuda.stream(side):
                step = next(steps, None)
            if step is None:
                return
            yield step, side.record_event()

    for step, ready in prefetched(prepare()):
        main.wait_event(ready)
        # Memory that the side stream allocated must not be reused before the main stream has read it.
        for tensor in (tensor for batch in step[1] for tensor in tensors_of(batch)):
            tensor.record_stream(main)
        yield step
