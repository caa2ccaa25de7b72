"""Cut items into batches for a neural encoder, and prepare the next batch while the GPU computes.

Shape legend: n rows of a batch, d width of the embeddings.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError

EncoderBatch = TypeVar("EncoderBatch")


def pick_dtype(wanted: str, device: torch.device) -> str:
    """Return the type to compute in; `auto` means bfloat16 on a GPU and float32 on a CPU."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if device.type == "cuda" else "float32"


def token_budget_batches(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `budget` positions, padding included; one text alone may exceed it.

    Args:
        lengths: tokens of each text, falling: the first text of a batch is then its longest.
    """
    # lengths 5, 3, 2, 2 with budget 6 -> slices 0:1 (5 positions), 1:3 (2 x 3), 3:4
    start = 0
    while start < len(lengths):
        stop = min(start + max(1, budget // lengths[start]), len(lengths))
        yield slice(start, stop)
        start = stop


def packed_batches(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `budget` tokens, without padding; one item alone may exceed it."""
    # lengths 5, 3, 2, 2 with budget 6 -> slices 0:1, 1:3 (3 + 2), 3:4
    start = used = 0
    for item, length in enumerate(lengths):
        if used and used + length > budget:
            yield slice(start, item)
            start = item
            used = 0
        used += length
    if used:
        yield slice(start, len(lengths))


def in_step(
    start: Callable[[EncoderBatch], Tensor], batches: Iterable[EncoderBatch], budget: int
) -> Iterator[np.ndarray]:
    """Yield the result of each batch after the next batch was started, so that the GPU never waits for the host.

    Args:
        start: computes the vectors of a batch, [n, d] on the device; it may return before the device has finished.
        budget: tokens of a batch, for the message when memory runs out.

    Raises:
        UserError: memory ran out; the message says to lower `budget`.
    """
    running: Tensor | None = None
    for batch in batches:
        try:
            following = start(batch)
        except torch.OutOfMemoryError:
            raise UserError(
                f"there is not enough memory for a batch of {budget:,} tokens",
                "finished shards stay on disk, and the next run goes on after them",
                "lower embed.batch_tokens (or embed.max_tokens), or choose a smaller embed.model",
            ) from None
        if running is not None:
            yield running.cpu().numpy()
        running = following
    if running is not None:
        yield running.cpu().numpy()


def send_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy the tensor to the device; a GPU fetches it from pinned memory while the host goes on."""
    if device.type != "cuda":
        return tensor
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
