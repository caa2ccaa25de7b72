"""Store vectors shard by shard, so that a killed run goes on where it stopped and several processes share the work.

A shard is a safetensors file in the scratch folder, written whole or not at all. The folder's name is a fingerprint of
all that decides the vectors, so that shards of other settings or other items are never used.

Under `torchrun --nproc-per-node n -m pipeline embed`, each process makes shards of about equal cost on its own GPU, and
process 0 then gathers all shards. The processes exchange nothing but shards, so n processes that somebody started by
hand, with RANK and WORLD_SIZE in their environment and one scratch folder, work too.

Shape legend: I items, d width of the embeddings.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.artifacts import read_tensors, write_tensors
from pipeline.errors import UserError
from pipeline.locks import in_turn, remove_unless_awaited
from pipeline.printing import say
from pipeline.progress import Progress

PATIENCE = 30.0  # seconds to wait for another process's next shard, besides twice the time that a shard takes


@dataclass(frozen=True)
class Share:
    """This process's rank among the processes that embed together, and their number."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_environment(cls) -> "Share":
        """Read rank and number of processes from the environment variables of torchrun."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def leads(self) -> bool:
        """Return whether this process gathers the shards, writes the result and prints."""
        return self.rank == 0


class EncodedItems(NamedTuple):
    """The vectors float32 [I, d], the encoder's facts for embeddings.json, and the shards to remove after writing."""

    vectors_Id: np.ndarray
    facts: dict[str, Any]
    shards: "Shards"


class Shards:
    """Vectors of a list of rows, in shards of `size` rows; two runs that make the same vectors take turns.

    Args:
        scratch: the folder of the shards' folder.
        fingerprint: of all that decides the vectors.
        rows: how many rows there are.
        size: rows of a shard.
        costs: of each row, such as its tokens, by which several processes share the shards; None: all cost the same.
    """

    def __init__(self, scratch: Path, fingerprint: str, rows: int, size: int, costs: np.ndarray | None = None):
        self.folder = scratch / "embed" / fingerprint[:16]
        self.rows = rows
        costs = np.ones(rows) if costs is None else costs
        self.spans = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
        self.costs = [float(costs[span].sum()) for span in self.spans]
        self._held = ExitStack()

    def fill(self, encode: Callable[[slice], Iterable[np.ndarray]], share: Share) -> np.ndarray | None:
        """Make the shards of this process that are not on disk yet, and gather all shards.

        Args:
            encode: returns the vectors of consecutive rows, in parts that add up to the slice.

        Returns:
            float32 [rows, d]; None if another process gathers. The process that gathers holds the shards until `close`.

        Raises:
            UserError: this process was started by hand, and another run makes the same vectors.
        """
        with ExitStack() as stack:
            if share.leads:
                stack.enter_context(
                    in_turn(
                        self.folder,
                        [],
                        waits="embed: {holder} embeds the same items; waiting for it, then this run takes its shards",
                        busy="{holder} embeds the same items by the same encoder",
                        both="two runs at once would make every vector twice",
                    )
                )
            vectors_Id = self._fill(encode, share)
            self._held = stack.pop_all()
        return vectors_Id

    def _fill(self, encode: Callable[[slice], Iterable[np.ndarray]], share: Share) -> np.ndarray | None:
        assigned = self.dealt(share.size)[share.rank]
        missing = [shard for shard in assigned if self.read(shard) is None]
        total = self._count(assigned)
        left = self._count(missing)
        if left < total:
            say(f"embed: resuming, {total - left:,} of {total:,} items are embedded already")
        label = "embed" if share.size == 1 else f"embed, process {share.rank + 1} of {share.size}"
        slowest = 0.0
        with Progress(label, total, "items", start=total - left) as progress:
            for shard in missing:
                began = time.monotonic()
                self._make(shard, encode, progress)
                slowest = max(slowest, time.monotonic() - began)
            if not share.leads:
                return None
            self._wait(PATIENCE + 2 * slowest)
            return self._gather(encode, progress)

    def dealt(self, processes: int) -> list[list[int]]:
        """Return the shards that each process makes; their costs are about equal.

        The costliest shard that is left goes to the process with the least to do: costs 9, 5, 3, 2 for 2 processes ->
        shards [0] and [1, 2, 3]
        """
        shards: list[list[int]] = [[] for _ in range(processes)]
        loads = [0.0] * processes
        for shard in sorted(range(len(self.spans)), key=lambda shard: -self.costs[shard]):
            least = loads.index(min(loads))
            shards[least].append(shard)
            loads[least] += self.costs[shard]
        return shards

    def _wait(self, patience: float) -> None:
        """Wait until the other processes have made their shards, or none came for `patience` seconds.

        A process that brings no shard for so long may have died; its shards are then made here.
        """
        missing = len(self.spans)
        since = time.monotonic()  # when the latest shard came
        while (left := sum(not self._path(shard).exists() for shard in range(len(self.spans)))) and (
            left < missing or time.monotonic() - since < patience
        ):
            if left < missing:
                missing = left
                since = time.monotonic()
            time.sleep(0.1)

    def _gather(self, encode: Callable[[slice], Iterable[np.ndarray]], progress: Progress) -> np.ndarray:
        """Return all vectors, and make the shards that are still missing."""
        parts = []
        for shard in range(len(self.spans)):
            vectors = self.read(shard)
            if vectors is None:
                progress.total += self._count([shard])
                vectors = self._make(shard, encode, progress)
            parts.append(vectors)
        return np.concatenate(parts)

    def _make(self, shard: int, encode: Callable[[slice], Iterable[np.ndarray]], progress: Progress) -> np.ndarray:
        parts = []
        for vectors in encode(self.spans[shard]):
            parts.append(vectors)
            progress.update(len(vectors))
        made = np.concatenate(parts)
        write_tensors(self._path(shard), {"vectors": made})
        return made

    def _count(self, shards: Iterable[int]) -> int:
        """Count the rows of these shards."""
        return sum(self.spans[shard].stop - self.spans[shard].start for shard in shards)

    def read(self, shard: int) -> np.ndarray | None:
        """Return float32 [rows of the shard, d], or None if the shard is missing or damaged."""
        path = self._path(shard)
        if not path.exists():
            return None
        try:
            return read_tensors(path)["vectors"]
        except UserError:
            say(f"embed: {path} is damaged and is made again")
            return None

    def remove(self) -> None:
        """Remove all shards that no other run awaits; call this when the result is written."""
        remove_unless_awaited(self.folder)

    def close(self) -> None:
        """Let another run of the same vectors go on."""
        self._held.close()

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"
