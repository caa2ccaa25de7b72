"""Work that a GPU does again and again, recorded as a CUDA graph: one launch, and no Python between the kernels.

A training step of a small model, or a beam search, is some hundred kernels of a few microseconds each. Launched one by
one from Python they take several times as long as they run.
"""

import gc
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

WARM = 2  # calls before the recording: they compile kernels, and allocate what stays
T = TypeVar("T")


def can_record(device: torch.device) -> bool:
    """Whether this device replays graphs, and so works beside the host instead of being waited for."""
    return device.type == "cuda"


@dataclass(frozen=True)
class Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # what the graph reads
    output: Any  # what it writes


class CudaGraphed:
    """A function whose calls are replayed from a CUDA graph, one for each shape of its argument.

    Two calls of each shape run as they are, then it is recorded. The function must not wait for the GPU, and must
    change tensors in place only. Random numbers continue from the generator as without recording.

    Args:
        function: of one argument, None or a dataclass with tensors in it (and dataclasses with more). What it returns
            may hold tensors too; the next call overwrites them.
        key: of the argument, what else a recording depends on beside the shapes of its tensors.
    """

    def __init__(self, function: Callable[[Any], Any], key: Callable[[Any], Hashable] = lambda argument: None):
        self.function, self.key = function, key
        self.warm_seconds = 0.0  # spent on calls that were not replays
        self._recordings: dict[Hashable, Recording] = {}
        self._calls: Counter[Hashable] = Counter()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, argument: Any) -> Any:
        tensors = tensors_of(argument)
        key = self.key(argument), *(tensor.shape for tensor in tensors)
        if key not in self._recordings:
            return self._warm(argument, key)
        recording = self._recordings[key]
        for input_tensor, tensor in zip(recording.inputs, tensors, strict=True):
            input_tensor.copy_(tensor)
        recording.graph.replay()
        return recording.output

    def _warm(self, argument: Any, key: Hashable) -> Any:
        torch.cuda.synchronize()
        began = time.perf_counter()
        self._calls[key] += 1
        result = self.function(argument)
        if self._calls[key] == WARM:
            self._recordings[key] = self._record(argument)
        torch.cuda.synchronize()
        self.warm_seconds += time.perf_counter() - began
        return result

    def _record(self, argument: Any) -> Recording:
        graph, static = torch.cuda.CUDAGraph(), map_tensors(argument, torch.clone)
        torch.clear_autocast_cache()  # what autocast made of the weights a moment ago will not be there at a replay
        # The worker that prepares batches may use the GPU meanwhile.
        with _nothing_collected(), torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = self.function(static)
        torch.clear_autocast_cache()
        return Recording(graph, tensors_of(static), output)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Garbage is collected before, and none meanwhile: freeing an old recording while one is made breaks it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a dataclass and in the dataclasses in it, field by field."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return [tensor for field in fields(value) for tensor in tensors_of(getattr(value, field.name))]
    return []


def map_tensors(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """The same dataclass with `function` of each tensor that `tensors_of` finds."""
    if isinstance(value, Tensor):
        return function(value)  # type: ignore[return-value]
    if is_dataclass(value):
        return replace(
            value,
            **{
                field.name: map_tensors(getattr(value, field.name), function)  # type: ignore[type-var]
                for field in fields(value)
            },
        )
    return value
