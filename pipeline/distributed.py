"""Let several processes under `torchrun` work together: number them, and exchange gradients and results.

In training each process builds the same model from the same seed and sees its share of every batch; gradients are added
up before each update, so that the models stay equal. In evaluation each process ranks its share of the users. Without
torchrun the world has one member and nothing is exchanged.

Shape legend: U users (or other rows) that the processes divide among them, S of them in the share of one process.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import LostProcessError, UserError
from pipeline.stopping import ends_by_itself, leave, reason, requested, started, tell

PATIENCE = 2.0  # seconds in which a process that ends leaves its reason
LOOK = 0.5  # seconds between two looks at the other processes
WORDS = ("ended", "left")  # keys of the store by which a process says that it ends, with a fault and without


def deal(costs_U: np.ndarray, parts: int) -> list[np.ndarray]:
    """Deal rows into `parts` of about equal cost, and return the rows of each, rising. Parts may be empty.

    The costliest rows are dealt first, back and forth: costs 5, 1, 4, 2 into 2 parts -> rows [0, 1] and [2, 3]
    """
    if parts == 1:
        return [np.arange(len(costs_U))]
    order_U = np.argsort(-costs_U, kind="stable")  # 0, 2, 3, 1
    turn_U, seat_U = np.divmod(np.arange(len(order_U)), parts)  # turns 0 0 1 1, seats 0 1 0 1
    seat_U = np.where(turn_U % 2 == 0, seat_U, parts - 1 - seat_U)  # 0 1 1 0: every other turn goes back
    return [np.sort(order_U[seat_U == part]) for part in range(parts)]


class Pending(Protocol):
    """`Pending` is an exchange that was begun. On a GPU `wait` lets the stream wait, and the host goes on."""

    def wait(self) -> object: ...


class Done:
    """`Done` is an exchange of one process, which is over at once."""

    def wait(self) -> None:
        """Return at once."""


@dataclass(frozen=True)
class World:
    """A `World` says which of the processes that work together this one is."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Tell whether this process is the one that writes files and prints."""
        return self.rank == 0

    def share(self, costs_U: np.ndarray) -> np.ndarray:
        """Return this process's rows, rising, so that the processes' costs are about equal."""
        return deal(costs_U, self.size)[self.rank]

    def gather(self, values_S: np.ndarray, share_S: np.ndarray, count: int, device: torch.device) -> np.ndarray:
        """Return all `count` numbers, or rows of them, the same on each process.

        Args:
            values_S: what this process brings.
            share_S: the rows that these are.
            count: how many rows all processes have together.
            device: where the processes exchange them.
        """
        brought = torch.from_numpy(values_S).to(device)
        values_U = torch.zeros((count, *brought.shape[1:]), dtype=brought.dtype, device=device)
        values_U[torch.from_numpy(share_S).to(device)] = brought
        return self.sum(values_U).cpu().numpy()

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over processes, the same on each; `values` is changed in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def begin_sum(self, values: Tensor) -> Pending:
        """Begin the element-wise sum over processes, in place; it is there after `wait` on what is returned.

        Of several sums that are under way, every process must begin the same ones in the same order.
        """
        if self.size == 1:
            return Done()
        pending: Pending = dist.all_reduce(values, async_op=True)
        return pending


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the world that torchrun describes in the environment: by NCCL between GPUs, by Gloo between CPUs.

    A thread looks at the other processes. Where one of them has died, this process ends within seconds and says so,
    whatever it waits for.

    Raises:
        LostProcessError: another process has ended, so that an exchange failed or this process was told to stop; the
            error says which one and why.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    # A recording must not make the processes agree on memory: they need not record in the same step.
    os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    world = World(dist.get_rank(), size)
    # torchrun's own process holds this store, so it outlives the processes that write into it.
    store = dist.distributed_c10d._get_default_store()
    store.set(f"process/{world.rank}", f"{socket.gethostname()} {os.getpid()}")
    others = _Others(store, world)
    try:
        with others.watched():
            yield world
            store.set(f"left/{world.rank}", "")
            dist.destroy_process_group()
    except dist.DistError as error:
        raise others.lost() from error
    except RuntimeError as error:
        if "gloo" not in str(error) and "onnection" not in str(error):
            _tell(store, world, error)
            raise
        raise others.lost() from error
    except BaseException as error:
        if requested() and others.dead():  # torchrun tells those that are left to stop
            raise others.lost() from error
        _tell(store, world, error)
        raise


def _tell(store: Any, world: World, error: BaseException) -> None:
    """Let the other processes know why this one ends."""
    why = f"it was told to stop by {reason()}" if requested() else (str(error).splitlines() or [""])[0]
    with suppress(RuntimeError):  # the store is gone
        store.set(f"ended/{world.rank}", f"{type(error).__name__}: {why}" if not isinstance(error, UserError) else why)


class _Others:
    """The other processes of a world: which of them died, and the word that each left.

    Args:
        store: where every process has written `process/RANK`; waits until all have.
        world: this process.
    """

    def __init__(self, store: Any, world: World):
        self.world = world
        # The main thread holds its own connection while it waits for something in the store.
        self.store = store.clone() if hasattr(store, "clone") else store
        here = socket.gethostname()
        self.pids: dict[int, int] = {}  # of this machine; a process of another one is not seen
        for rank in range(world.size):
            host, pid = store.get(f"process/{rank}").decode().split()
            if rank != world.rank and host == here:
                self.pids[rank] = int(pid)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """End this process where another one has died and this one has not ended within `PATIENCE` seconds more."""
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), daemon=True, name="others")
        watcher.start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(LOOK):
            if self.dead() and not over.wait(2 * PATIENCE):
                tell(": ".join(str(self.lost()).splitlines()[:2]))
                leave(1)

    def dead(self) -> list[int]:
        """Return the ranks of this machine's processes that have ended without a word."""
        silent = [rank for rank, pid in self.pids.items() if not started(pid)]
        with suppress(RuntimeError):  # the store is gone
            return [rank for rank in silent if not any(self.store.check([f"{word}/{rank}"]) for word in WORDS)]
        return silent

    def lost(self) -> LostProcessError:
        """Say which of the other processes ended, and why."""
        ends_by_itself()  # torchrun tells those that are left to stop, at the same time
        found: list[str] = []
        deadline = time.monotonic() + PATIENCE
        while not found and time.monotonic() < deadline:
            found = [f"{self._name(rank)} was killed, or the machine ran out of memory" for rank in self.dead()]
            found = found or self._told()
            time.sleep(0.0 if found else 0.1)
        return LostProcessError(
            "; ".join(found) or "the connection to another process broke, and it left no reason",
            f"{self._name(self.world.rank)} cannot go on alone",
            "mend the cause, then run the same command again: training goes on from its last checkpoint",
        )

    def _told(self) -> list[str]:
        """Return what the processes that ended with a word have said."""
        with suppress(RuntimeError):
            return [
                f"{self._name(rank)} has ended: {self.store.get(f'ended/{rank}').decode()}"
                for rank in range(self.world.size)
                if rank != self.world.rank and self.store.check([f"ended/{rank}"])
            ]
        return []

    def _name(self, rank: int) -> str:
        return f"process {rank + 1} of {self.world.size}"
