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
from pipeline.training.collate import Collator, common_shape, fitted
from pipeline.training.steps import Step, deal, steps_of_pass
from pipeline.training.windows import Passes, Windows

T = TypeVar("T")
MEASURED_STEPS = 64  # of the first pass, which tell how large batches are
# (pass, starts_W, ends_W) of a step's windows -> what is computed of them; None: everything
Select = Callable[[int, np.ndarray, np.ndarray], Selected | None]


Prepared = tuple[Step, list[Batch]]  # a step and this process's batches of it


class Feed:
    """This process's batches of every step, in the order of training.

    Args:
        budget: encoder positions of a step, by what a whole history takes in the backbone.
        tokens_per_item: encoder positions of one item, its separator included.
        accumulate: parts that each process splits a step into.
        fill: batches are filled up to few shapes, for a step that is recorded.
    """

    def __init__(
        self,
        passes: Passes,
        collator: Collator,
        world: World,
        *,
        budget: int,
        tokens_per_item: int,
        accumulate: int = 1,
        fill: bool = False,
    ):
        self.passes, self.collator = passes, collator
        self.budget, self.tokens_per_item = budget, tokens_per_item
        self.device = collator.codes_IL.device
        self.parts = world.size * accumulate
        self.own = range(world.rank * accumulate, (world.rank + 1) * accumulate)  # parts of this process
        self.shape: Shape | None = None
        if fill:
            steps = steps_of_pass(passes, 0, 0, budget, tokens_per_item)
            self.shape = common_shape(itertools.islice(steps, MEASURED_STEPS), self.parts, passes.max_history)

    def rest_of_pass(
        self, pass_index: int, first: int, weigh: Weigh | None, select: Select | None = None
    ) -> Iterator[Prepared]:
        """The steps of a pass from place `first` on; on a GPU the next one is prepared while it works on this one."""
        batches = self._prepared(pass_index, first, weigh, select)
        return beside(batches, self.device) if can_record(self.device) else batches

    def _prepared(self, pass_index: int, first: int, weigh: Weigh | None, select: Select | None) -> Iterator[Prepared]:
        shape: Shape | None = None
        for step in self._chosen(pass_index, first, weigh, select):
            if shape is None and self.shape is not None:
                # Always sized from the pass's first step, also after a resume: rounding depends on tensor sizes.
                whole = step if first == 0 else next(self._chosen(pass_index, 0, weigh, select))
                shape = fitted(self.shape, whole, self.parts)
            yield step, self._batches(step, shape)

    def _chosen(self, pass_index: int, first: int, weigh: Weigh | None, select: Select | None) -> Iterator[Step]:
        for step in steps_of_pass(self.passes, pass_index, first, self.budget, self.tokens_per_item, weigh):
            if select is None:
                yield step
            else:
                yield replace(step, selected=select(pass_index, step.windows.starts_W, step.windows.ends_W))

    def first_windows(self) -> Windows:
        """The windows of a run's first step, over all processes, where nothing is skipped."""
        return next(steps_of_pass(self.passes, 0, 0, self.budget, self.tokens_per_item)).windows

    def _batches(self, step: Step, shape: Shape | None) -> list[Batch]:
        parts, listed = deal(step.windows.lengths_W, self.parts), self.collator.listed(step)
        return [self.collator(step, parts[part], shape=shape, listed=listed) for part in self.own]


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
