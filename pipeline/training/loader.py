"""The batches of every step that one process trains on; on a GPU the next step is prepared beside the current one."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from pipeline.cuda_graphs import can_record, tensors_of
from pipeline.distributed import World
from pipeline.packing.batch import Batch, Selected
from pipeline.packing.shape import Shape
from pipeline.strategies.base import Weigh
from pipeline.training.collate import Collator, common_shape, fitted_shape
from pipeline.training.steps import Step, deal, steps_of_epoch
from pipeline.training.windows import Epochs, Windows

T = TypeVar("T")
MEASURED_STEPS = 64  # of the first pass, which tell how large batches are
# (pass, starts_W, ends_W) of a step's windows -> what is computed of them; None: everything
Select = Callable[[int, np.ndarray, np.ndarray], Selected | None]


StepBatches = tuple[Step, list[Batch]]  # a step and this process's batches of it


class BatchLoader:
    """This process's batches of every step, in the order of training.

    Args:
        budget: encoder positions of a step, by what a whole history takes in the backbone.
        input_tokens_per_item: encoder positions of one item, its separator included.
        accumulate: parts that each process splits a step into.
        fill: batches are filled up to few shapes, for a step that is recorded.
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
        self.epochs, self.collator = epochs, collator
        self.budget, self.input_tokens_per_item = budget, input_tokens_per_item
        self.device = collator.codes_IL.device
        self.parts = world.size * accumulate
        self.process_parts = range(world.rank * accumulate, (world.rank + 1) * accumulate)  # parts of this process
        self.shape: Shape | None = None
        if fill:
            steps = steps_of_epoch(epochs, 0, 0, budget, input_tokens_per_item)
            self.shape = common_shape(itertools.islice(steps, MEASURED_STEPS), self.parts, epochs.max_history)

    def rest_of_epoch(
        self, epoch: int, first: int, weigh: Weigh | None, select: Select | None = None
    ) -> Iterator[StepBatches]:
        """The steps of a pass from place `first` on; on a GPU the next one is prepared while it works on this one."""
        batches = self._prepared(epoch, first, weigh, select)
        return prefetched_on_stream(batches, self.device) if can_record(self.device) else batches

    def _prepared(self, epoch: int, first: int, weigh: Weigh | None, select: Select | None) -> Iterator[StepBatches]:
        shape: Shape | None = None
        for step in self._chosen(epoch, first, weigh, select):
            if shape is None and self.shape is not None:
                # Always sized from the pass's first step, also after a resume: rounding depends on tensor sizes.
                whole = step if first == 0 else next(self._chosen(epoch, 0, weigh, select))
                shape = fitted_shape(self.shape, whole, self.parts)
            yield step, self._batches(step, shape)

    def _chosen(self, epoch: int, first: int, weigh: Weigh | None, select: Select | None) -> Iterator[Step]:
        for step in steps_of_epoch(self.epochs, epoch, first, self.budget, self.input_tokens_per_item, weigh):
            if select is None:
                yield step
            else:
                yield replace(step, selected=select(epoch, step.windows.starts_W, step.windows.ends_W))

    def first_windows(self) -> Windows:
        """The windows of a run's first step, over all processes, where nothing is skipped."""
        return next(steps_of_epoch(self.epochs, 0, 0, self.budget, self.input_tokens_per_item)).windows

    def _batches(self, step: Step, shape: Shape | None) -> list[Batch]:
        parts, item_counts = deal(step.windows.lengths_W, self.parts), self.collator.count_items(step)
        return [self.collator(step, parts[part], shape=shape, item_counts=item_counts) for part in self.process_parts]


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is prepared in a thread while the caller works on this one."""
    done: Any = object()
    with ThreadPoolExecutor(1) as worker:
        pending = worker.submit(next, items, done)
        while (item := pending.result()) is not done:
            pending = worker.submit(next, items, done)
            yield item


def prefetched_on_stream(steps: Iterator[StepBatches], device: torch.device) -> Iterator[StepBatches]:
    """The same steps, the next one prepared ahead and on a stream of its own, so that it does not wait for this one."""
    stream, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def prepare() -> Iterator[tuple[StepBatches, torch.cuda.Event]]:
        while True:
            with torch.cuda.stream(stream):
                step = next(steps, None)
            if step is None:
                return
            yield step, stream.record_event()

    for step, ready in prefetched(prepare()):
        main.wait_event(ready)
        for tensor in (tensor for batch in step[1] for tensor in tensors_of(batch)):
            tensor.record_stream(main)
        yield step
