"""Several processes under `torchrun`: who they are, and the few things they exchange outside of the gradients.

Gradients are exchanged by torch's DistributedDataParallel. Without torchrun the world has one member and nothing is
exchanged.
"""

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over processes, the same on each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass averages gradients over processes."""
        if self.size == 1:
            return model
        with warnings.catch_warnings():  # torch 2.13 has a new name for the option, which 2.11 does not know
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(model, broadcast_buffers=False)

    def exchange(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Around a forward and backward pass: gradients are exchanged only after the last part of a step."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


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
        # DistributedDataParallel must let go of the group first: where it is the last to, freeing the group waits for a
        # thread that waits for Python's lock, for ever.
        gc.collect()
        dist.destroy_process_group()
