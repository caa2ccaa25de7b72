"""What every neural encoder needs around its batches: how large they are, and how the GPU is kept busy.

Shape legend: n rows of a batch, d embedding width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError

EncoderBatch = TypeVar("EncoderBatch")


def pick_dtype(wanted: str, device: torch.device) -> str:
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if device.type == "cuda" else "float32"


def token_budget_batches(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Consecutive slices of at most `budget` positions, padding included; one text alone may exceed it.

    `lengths` must fall: the first text of a batch then is its longest.
    """
    start = 0
    while start < len(lengths):
        stop = min(start + max(1, budget // lengths[start]), len(lengths))
        yield slice(start, stop)
        start = stop


def packed_batches(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Consecutive slices of at most `budget` tokens, without padding; one item alone may exceed it."""
    start = used = 0
    for item, length in enumerate(lengths):
        if used and used + length > budget:
            yield slice(start, item)
            start, used = item, 0
        used += length
    if used:
        yield slice(start, len(lengths))


def in_step(
    start: Callable[[EncoderBatch], Tensor], batches: Iterable[EncoderBatch], budget: int
) -> Iterator[np.ndarray]:
    """The result of each batch, fetched only when the next one is on its way: the GPU never waits for the host.

    Args:
        start: the vectors of a batch, [n, d] on the device; it need not wait for them.

    Raises:
        UserError: memory ran out; `budget` is what to lower.
    """
    running: Tensor | None = None
    for batch in batches:
        try:
            following = start(batch)
        except torch.OutOfMemoryError:
            raise UserError(
                f"there is not enough memory for a batch of {budget:,} tokens",
                "finished shards are kept, the next run goes on after them",
                "lower embed.batch_tokens (or embed.max_tokens), or take a smaller embed.model",
            ) from None
        if running is not None:
            yield running.cpu().numpy()
        running = following
    if running is not None:
        yield running.cpu().numpy()


def send_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; a GPU fetches it by itself, while the host goes on."""
    if device.type != "cuda":
        return tensor
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
