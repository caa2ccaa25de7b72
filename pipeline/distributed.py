"""Several processes under `torchrun`: who they are, and what they exchange.

In training each process builds the same model from the same seed and sees its share of every batch; gradients are added
up before each update, so that the models stay equal. In evaluation each ranks its share of the users. Without torchrun
the world has one member and nothing is exchanged.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among those that work together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """This process's rows of what all processes divide among them."""
        return slice(self.rank, None, self.size)

    def gather(self, share_U: np.ndarray, count: int, device: torch.device) -> np.ndarray:
        """All `count` numbers, int64, the same on each process; each brings those of its `share`."""
        values_U = torch.zeros(count, dtype=torch.int64, device=device)
        values_U[self.share] = torch.from_numpy(share_U).to(device)
        return self.sum(values_U).cpu().numpy()

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over processes, the same on each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def add_gradients(self, model: nn.Module) -> None:
        """Make each gradient the sum over processes. One exchange of all of them, after the backward pass: on small
        models nothing is gained by overlapping the two, and a CUDA graph can hold the one without the other.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
        )


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun describes in the environment: NCCL between GPUs, Gloo between CPUs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
