"""Compile a network's blocks for training, and the Triton kernels of a whole search side by side.

Triton compiles a kernel at its first launch, and launches come one after another: the first validation on a machine
waits for some forty compilations in turn. `compile_kernels_of` runs a function once without launching, collects what
its launches would compile, and compiles all of that at once. This file needs no Triton: it is handed the kernels.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.ops.layout import uses_kernels

ALIGNED = 16  # bytes; Triton compiles apart for pointers, and integers, that are no multiple of it
# Small kernels that do not wait for each other, such as those that round each weight to bfloat16, become one kernel.
INDUCTOR_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"combo_kernels": True}
Variant = tuple[object, ...]  # equal for two launches that one compilation serves


def compile_block(block: nn.Module) -> None:
    """Have torch compile a block at its first call, for batches of every size; alike blocks share one compilation."""
    block.compile(dynamic=True, options=INDUCTOR_OPTIONS)


@dataclass(frozen=True)
class Deferred:
    """A `Deferred` launch is one whose kernel is to be compiled."""

    kernel: Any  # a Triton function; Triton has no types
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, object]


_wanted: ContextVar[dict[Variant, Deferred] | None] = ContextVar("wanted", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, written: Sequence[Tensor], **options: object) -> None:
    """Launch a kernel; within `compile_kernels_of`, only note that it is wanted.

    Args:
        grid: programs along each axis.
        arguments: the kernel's, by position: tensors, tuples of tensors, and numbers.
        written: the tensors that the kernel fills. Unlaunched, they are zeros: what follows may use them as indices.
        options: constants of the kernel's compilation, by name.
    """
    wanted = _wanted.get()
    if wanted is None:
        kernel[grid](*arguments, **options)
        return
    for tensor in written:
        tensor.zero_()
    variant = _variant(kernel, arguments, options)
    if variant not in wanted:
        wanted[variant] = Deferred(kernel, grid, tuple(map(_small, arguments)), options)


def compile_kernels_of(device: torch.device, function: Callable[[], object]) -> None:
    """Compile what the launches of `function` need, where kernels run; elsewhere do nothing.

    Args:
        function: runs without launching; it must not branch on results, and its result is dropped.
    """
    if not uses_kernels(device):
        return
    wanted: dict[Variant, Deferred] = {}
    token = _wanted.set(wanted)
    try:
        function()
    finally:
        _wanted.reset(token)

    def warm(one: Deferred) -> None:
        with torch.cuda.device(device):
            one.kernel.warmup(*one.arguments, grid=one.grid, **one.options)

    if wanted:
        with ThreadPoolExecutor(min(len(wanted), os.cpu_count() or 1)) as pool:
            list(pool.map(warm, wanted.values()))


def _variant(kernel: Any, arguments: tuple[Any, ...], options: dict[str, object]) -> Variant:
    """Return what Triton tells two compilations of a kernel apart by: types, alignments, ones, and constants."""
    kinds = [
        type(value) if parameter.do_not_specialize and isinstance(value, int | float) else tuple(_kinds(value))
        for parameter, value in zip(kernel.params, arguments, strict=False)
    ]
    return (kernel, *kinds, *sorted((name, str(value)) for name, value in options.items()))


def _kinds(value: Any) -> Iterator[object]:
    if isinstance(value, Tensor):
        yield value.dtype, value.data_ptr() % ALIGNED == 0
    elif isinstance(value, tuple):
        for part in value:
            yield tuple(_kinds(part))
    elif isinstance(value, int):
        yield value == 1, value % ALIGNED == 0, value < 2**31
    else:
        yield type(value)


def _small(value: Any) -> Any:
    """Replace tensors by small ones that compile the same, so that those of a whole search need not stay in memory."""
    if isinstance(value, tuple):
        return tuple(map(_small, value))
    if isinstance(value, Tensor) and value.data_ptr() % ALIGNED == 0:
        return value.new_empty(ALIGNED)
    return value
