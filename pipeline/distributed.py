"""Let several processes under `torchrun` work together: number them, and exchange gradients and results.

In training each process builds the same model from the same seed and sees its share of every batch; gradients are added
up before each update, so that the models stay equal. In evaluation each process ranks its share of the users. Without
torchrun the world has one member and nothing is exchanged.

Shape legend: U users (or other rows) that the processes divide among them; a share is every size-th of them.
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
    """A `World` says which of the processes that work together this one is."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Tell whether this process is the one that writes files and prints."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Return the slice of this process's rows: rank 1 of 3 processes takes rows 1, 4, 7, ..."""
        return slice(self.rank, None, self.size)

    def gather(self, share_U: np.ndarray, count: int, device: torch.device) -> np.ndarray:
        """Return all `count` numbers, int64 [U], the same on each process; each brings those of its `share`."""
        values_U = torch.zeros(count, dtype=torch.int64, device=device)
        values_U[self.share] = torch.from_numpy(share_U).to(device)
        return self.sum(values_U).cpu().numpy()

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over processes, the same on each; `values` is changed in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def add_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its sum over processes, in one exchange of all gradients after the backward pass.

        On small models nothing is gained by overlapping the exchange with the pass, and a CUDA graph can hold the pass
        without the exchange.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
        )


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the world that torchrun describes in the environment: by NCCL between GPUs, by Gloo between CPUs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
