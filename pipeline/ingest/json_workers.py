"""Parse blocks of JSON lines in processes of their own, a core each: Python's parser holds Python's lock.

A process is started where a file has given PARALLEL_BYTES, since it takes half a second to begin. It reads blocks from
its input until that ends, so it never outlives the process that started it, whatever ends that one. Where no process
can be started, or one dies, its blocks are parsed here.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipeline.ingest.json_blocks import Parsed, parse_block

PARALLEL_BYTES = 32 << 20  # of a file, that are parsed in this process
MOST_WORKERS = 16
ENDING = 2.0  # seconds that a process has to end


def parsed_blocks(blocks: Iterator[bytes], limit: int, columns: Sequence[str]) -> Generator[Parsed, None, None]:
    """Yield what each block holds, in order; the processes, if any were started, end with this iterator.

    Args:
        blocks: read in this thread.
        limit: bytes that a line may have.
        columns: the columns that are wanted.
    """
    columns = list(columns)
    done = 0
    for block in blocks:
        yield parse_block(block, limit, columns)
        done += len(block)
        if done >= PARALLEL_BYTES and cores() > 1:
            break
    else:
        return
    yield from _in_parallel(blocks, limit, columns)


def _in_parallel(blocks: Iterator[bytes], limit: int, columns: list[str]) -> Iterator[Parsed]:
    workers: queue.Queue[_Worker] = queue.Queue()
    count = min(cores(), MOST_WORKERS)

    def parse(block: bytes) -> Parsed:
        worker = workers.get()
        try:
            return worker.parse(block, limit, columns)
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(count, "ingest: parsing") as threads:
        started = [_Worker() for _ in range(count)]
        try:
            for worker in started:
                workers.put(worker)
            running: deque[Future[Parsed]] = deque()
            for block in blocks:
                running.append(threads.submit(parse, block))
                if len(running) > count:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for worker in started:
                worker.end()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process that parses; without one, this process does."""

    def __init__(self) -> None:
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self.process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.ingest.json_workers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what stops it is found again, and told, where its block is parsed here
                env={**os.environ, "PYTHONPATH": path},
            )

    def parse(self, block: bytes, limit: int, columns: list[str]) -> Parsed:
        if self.process and self.process.stdin and self.process.stdout:
            with suppress(OSError, EOFError, pickle.UnpicklingError):
                pickle.dump((block, limit, columns), self.process.stdin, protocol=5)
                self.process.stdin.flush()
                found: Parsed = pickle.load(self.process.stdout)
                return found
            self.end()
        return parse_block(block, limit, columns)

    def end(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                stream and stream.close()
        try:
            process.wait(ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer blocks with what they hold, until no more come."""
    while True:
        try:
            block, limit, columns = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(parse_block(block, limit, columns), replies, protocol=5)
        replies.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    with suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
