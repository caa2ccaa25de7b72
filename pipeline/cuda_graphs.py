"""Record work that a GPU repeats as a CUDA graph: one launch, and no Python between the kernels.

A training step of a small model, or a beam search, is some hundred kernels of a few microseconds each. Launched one by
one from Python they take several times as long as they run.
"""

import gc
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

WARM = 2  # calls before the recording: they compile kernels, and allocate memory that later calls use again
T = TypeVar("T")
_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


def can_record(device: torch.device) -> bool:
    """Tell whether this device replays graphs, and so works beside the host, which need not wait for it."""
    return device.type == "cuda"


@dataclass(frozen=True)
class Recording(Generic[_Result]):
    """A recording is a graph with the tensors that it reads and writes at each replay."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # what the graph reads
    output: _Result  # what it writes


class CudaGraphed(Generic[_Argument, _Result]):
    """A `CudaGraphed` replays the calls of a function from CUDA graphs, one for each shape of its argument.

    The first two calls of each shape run as they are, then the function is recorded. The function must not wait for the
    GPU, and must change tensors in place only. Random numbers continue from the generator as without recording.

    Args:
        function: takes one argument, None or a dataclass with tensors in it (and dataclasses with more). What it
            returns may hold tensors too; the next call overwrites them.
        key: tells what else in the argument a recording depends on, beside the shapes of the tensors.
    """

    def __init__(self, function: Callable[[_Argument], _Result], key: Callable[[_Argument], Hashable] | None = None):
        self.function = function
        self.key = key
        self.warm_seconds = 0.0  # spent on calls that were not replays
        self._recordings: dict[Hashable, Recording[_Result]] = {}
        self._calls: Counter[Hashable] = Counter()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, argument: _Argument) -> _Result:
        tensors = tensors_of(argument)
        key = (self.key(argument) if self.key else None, *(tensor.shape for tensor in tensors))
        if key not in self._recordings:
            return self._warm(argument, key)
        recording = self._recordings[key]
        for input_tensor, tensor in zip(recording.inputs, tensors, strict=True):
            input_tensor.copy_(tensor)
        recording.graph.replay()
        return recording.output

    def forget(self) -> None:
        """Free the recordings."""
        self._recordings.clear()

    def _warm(self, argument: _Argument, key: Hashable) -> _Result:
        """Call the function as it is, and record it once enough calls have run."""
        torch.cuda.synchronize()
        began = time.perf_counter()
        self._calls[key] += 1
        result = self.function(argument)
        if self._calls[key] == WARM:
            self._recordings[key] = self._record(argument)
        torch.cuda.synchronize()
        self.warm_seconds += time.perf_counter() - began
        return result

    def _record(self, argument: _Argument) -> Recording[_Result]:
        graph = torch.cuda.CUDAGraph()
        static = map_tensors(argument, torch.clone)
        torch.clear_autocast_cache()  # the copies of weights that autocast has cached will be gone at a replay
        # The worker that prepares batches may use the GPU meanwhile.
        with _no_garbage_collection(), torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = self.function(static)
        torch.clear_autocast_cache()
        return Recording(graph, tensors_of(static), output)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage before the block and none in it: freeing an old recording breaks one that is being made."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def tensors_of(value: object) -> list[Tensor]:
    """Return the tensors in a dataclass and in the dataclasses that it holds, field by field."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return [tensor for field in fields(value) for tensor in tensors_of(getattr(value, field.name))]
    return []


def map_tensors(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """Return a copy of the dataclass in which `function` has replaced each tensor that `tensors_of` finds."""
    if isinstance(value, Tensor):
        return function(value)  # type: ignore[return-value]  # here T is Tensor
    if is_dataclass(value):
        changes = {field.name: map_tensors(getattr(value, field.name), function) for field in fields(value)}
        return replace(value, **changes)  # type: ignore[type-var]  # mypy does not narrow T to a dataclass
    return value
