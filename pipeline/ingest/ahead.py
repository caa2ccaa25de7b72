"""Read a raw file in a thread of its own, a chunk ahead of the thread that types the rows.

Arrow decodes Parquet and parses CSV without Python's lock, so that two cores work at once. The chunks, their order, and
the bad rows before each of them are those of reading in one thread.
"""

import queue
import threading
from collections.abc import Callable, Iterator

from pipeline.ingest.chunks import Chunk, Reject

AHEAD = 1  # chunks that wait
PATIENCE = 0.1  # seconds after which the reading thread looks whether anybody still wants its chunks
STOPPING = 5.0  # seconds to wait for the chunk that it is reading, when a command is told to stop

Complaints = list[tuple[int, str, str]]  # arguments of `Reject`


def read_ahead(read: Callable[[Reject], Iterator[Chunk]], reject: Reject) -> Iterator[Chunk]:
    """Yield the chunks of `read(reject)`.

    Args:
        read: called once, in the other thread.
        reject: called in this thread, before the chunk that follows the bad rows.

    Raises:
        BaseException: what `read` raises, after the chunks before it.
    """
    reader = _Reader(read)
    reader.start()
    try:
        while True:
            found, result = reader.results.get()
            for line, reason, row in found:
                reject(line, reason, row)
            if isinstance(result, BaseException):
                raise result
            if result is None:
                return
            yield result
    finally:
        reader.unwanted.set()
        reader.join(STOPPING)


class _Reader(threading.Thread):
    """The thread that reads. Its last result is None or an exception."""

    def __init__(self, read: Callable[[Reject], Iterator[Chunk]]):
        super().__init__(name="ingest: reading", daemon=True)
        self.read = read
        self.results: queue.Queue[tuple[Complaints, Chunk | BaseException | None]] = queue.Queue(AHEAD)
        self.unwanted = threading.Event()
        self.found: Complaints = []  # bad rows since the last chunk

    def run(self) -> None:
        try:
            for chunk in self.read(lambda line, reason, row: self.found.append((line, reason, row))):
                self._give(chunk)
                if self.unwanted.is_set():
                    return
        except BaseException as error:  # raised again in the thread that asked
            self._give(error)
        else:
            self._give(None)

    def _give(self, result: Chunk | BaseException | None) -> None:
        found, self.found = self.found, []
        while not self.unwanted.is_set():
            try:
                self.results.put((found, result), timeout=PATIENCE)
                return
            except queue.Full:
                pass
