"""Let several processes under `torchrun` work together: number them, and exchange gradients and results.

In training each process builds the same model from the same seed and sees its share of every batch; gradients are added
up before each update, so that the models stay equal. In evaluation each process ranks its share of the users. Without
torchrun the world has one member and nothing is exchanged.

Shape legend: U users (or other rows) that the processes divide among them; a share is every size-th of them.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import LostProcessError, UserError
from pipeline.stopping import ends_by_itself, reason, requested, started

PATIENCE = 2.0  # seconds in which a process that ends leaves its reason


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
        """Return all `count` numbers, or rows of them, the same on each process; each brings those of its `share`."""
        brought = torch.from_numpy(share_U).to(device)
        values_U = torch.zeros((count, *brought.shape[1:]), dtype=brought.dtype, device=device)
        values_U[self.share] = brought
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
    """Join the world that torchrun describes in the environment: by NCCL between GPUs, by Gloo between CPUs.

    Raises:
        LostProcessError: an exchange failed because another process has ended; the error says which one and why.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    world = World(dist.get_rank(), size)
    # torchrun's own process holds this store, so it outlives the processes that write into it.
    store = dist.distributed_c10d._get_default_store()
    store.set(f"process/{world.rank}", f"{socket.gethostname()} {os.getpid()}")
    try:
        yield world
    except dist.DistError as error:
        raise _lost(store, world) from error
    except RuntimeError as error:
        if "gloo" not in str(error) and "onnection" not in str(error):
            _tell(store, world, error)
            raise
        raise _lost(store, world) from error
    except BaseException as error:
        _tell(store, world, error)
        raise
    finally:
        dist.destroy_process_group()


def _tell(store: Any, world: World, error: BaseException) -> None:
    """Let the other processes know why this one ends."""
    why = f"it was told to stop by {reason()}" if requested() else (str(error).splitlines() or [""])[0]
    with suppress(RuntimeError):  # the store is gone
        store.set(f"ended/{world.rank}", f"{type(error).__name__}: {why}" if not isinstance(error, UserError) else why)


def _lost(store: Any, world: World) -> LostProcessError:
    """Say which of the other processes ended, and why."""
    ends_by_itself()  # torchrun tells those that are left to stop, at the same time
    found: list[str] = []
    deadline = time.monotonic() + PATIENCE
    with suppress(RuntimeError):
        while not found and time.monotonic() < deadline:
            for rank in range(world.size):
                if store.check([f"ended/{rank}"]):
                    found.append(f"process {rank + 1} of {world.size} has ended: {store.get(f'ended/{rank}').decode()}")
                elif rank != world.rank and _is_dead(store, rank):
                    found.append(f"process {rank + 1} of {world.size} was killed, or the machine ran out of memory")
            time.sleep(0.1)
    return LostProcessError(
        "; ".join(found) or "the connection to another process broke, and it left no reason",
        f"process {world.rank + 1} of {world.size} cannot go on alone",
        "mend the cause, then run the same command again: training goes on from its last checkpoint",
    )


def _is_dead(store: Any, rank: int) -> bool:
    """Return whether a process of this machine has ended; False where it runs on another machine."""
    if not store.check([f"process/{rank}"]):
        return False
    host, pid = store.get(f"process/{rank}").decode().split()
    return host == socket.gethostname() and not started(int(pid))
