"""Take one reply of a server that is not trusted, in a thread that is left behind where the server dawdles.

A time-out of a socket begins anew with each byte. So a server could keep a reader for ever with a header, the size of a
chunk or lines behind the last chunk, a byte at a time. Here the time counts until the next bytes of the file itself.
"""

import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPResponse
from types import TracebackType
from typing import Self

BLOCK_BYTES = 1 << 18
BLOCKS = 4  # blocks that wait for the reader at most
SLOW_BYTES = 1024  # bytes a second, over `SLOW_SECONDS`, below which a server is too slow
SLOW_SECONDS = 20.0
SILENCE = 24.0  # seconds without a byte, over all attempts of a download, after which it is given up
LINE = 4096  # bytes of a chunk's size with its extensions, and of a line behind the last chunk
TRAILERS = 100  # lines behind the last chunk
SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(;[^\r\n]*)?\r?\n")
END = re.compile(rb"\r?\n")


class SlowError(ValueError):
    """Too few bytes came."""


@dataclass
class Pace:
    """A pace judges the bytes of all attempts and the time of all waits of one download, `SLOW_SECONDS` at a time."""

    began: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    came: int = 0

    def add(self, count: int) -> None:
        """Count bytes. Raises SlowError, as `check` does."""
        self.came += count
        self.last = time.monotonic()
        self.check()

    def check(self) -> None:
        """Raise SlowError where no byte came in the last `SILENCE` seconds, or too few in `SLOW_SECONDS`."""
        silent = time.monotonic() - self.last
        if silent >= SILENCE:
            raise SlowError(f"the server sent nothing for {silent:.0f} seconds")
        passed = time.monotonic() - self.began
        if passed >= SLOW_SECONDS:
            if self.came < SLOW_BYTES * passed:
                raise SlowError(f"the server sent {self.came:,} bytes in {passed:.0f} seconds, which is too slow")
            self.began, self.came = time.monotonic(), 0


class Reply:
    """A reply has a head, and the blocks of its body as they come.

    Args:
        ask: sends the request and returns the response; called in the thread.
        seconds: the time until the head and until each further block.
    """

    def __init__(self, ask: Callable[[], HTTPResponse], seconds: float):
        self._ask = ask
        self._seconds = seconds
        self._came: queue.Queue[HTTPResponse | bytes | BaseException] = queue.Queue(BLOCKS)
        self._left = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._work, daemon=True, name="fetch").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()

    def head(self) -> HTTPResponse:
        """Return the response, whose body only `blocks` may read. Raises TimeoutError, and what `ask` raises."""
        head = self._take("no answer")
        assert isinstance(head, HTTPResponse)
        return head

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes of the body as they come.

        Raises:
            TimeoutError: no byte came in time.
            ConnectionError: the connection ended within a chunk.
            ValueError: the body is against the rules of HTTP.
        """
        while block := self._take("no more bytes"):
            assert isinstance(block, bytes)
            yield block

    def _take(self, what: str) -> HTTPResponse | bytes:
        try:
            came = self._came.get(timeout=self._seconds)
        except queue.Empty:
            raise TimeoutError(f"{what} in {self._seconds:.0f} seconds") from None
        if isinstance(came, BaseException):
            raise came
        return came

    def _work(self) -> None:
        try:
            with self._ask() as response:
                self._put(response)
                for block in body(response):
                    self._put(block)
            self._put(b"")
        except _LeftError:
            pass
        except BaseException as error:
            with suppress(_LeftError):
                self._put(error)

    def _put(self, what: HTTPResponse | bytes | BaseException) -> None:
        while not self._left.is_set():
            try:
                return self._came.put(what, timeout=0.1)
            except queue.Full:
                continue
        raise _LeftError


class _LeftError(Exception):
    """Nobody takes the answer any more."""


def body(response: HTTPResponse) -> Iterator[bytes]:
    """Yield the bytes of a response's body as they come; http.client takes `-5` for the size of a chunk.

    Raises:
        ConnectionError: the connection ended within a chunk.
        ValueError: the body is coded otherwise than in chunks, or a chunk is against the rules of HTTP.
    """
    coding = response.headers.get("Transfer-Encoding", "").strip().lower()
    if not coding or coding == "identity":
        while block := response.read1(BLOCK_BYTES):
            yield block
        return
    if coding != "chunked":
        raise ValueError("the server sends the file in a coding that was not asked for")
    while left := _chunk_size(response):
        while left:
            block = response.fp.read1(min(left, BLOCK_BYTES))
            if not block:
                raise ConnectionError("the connection was dropped within a chunk")
            left -= len(block)
            yield block
        if not END.fullmatch(_line(response)):
            raise ValueError("a chunk of the server's reply is longer than its size")
    for _ in range(TRAILERS):
        if END.fullmatch(_line(response)):
            return
    raise ValueError("the server's reply does not end behind its last chunk")


def _chunk_size(response: HTTPResponse) -> int:
    match = SIZE.fullmatch(_line(response))
    if not match:
        raise ValueError("the server's reply has a chunk whose size is no number")
    return int(match[1], 16)


def _line(response: HTTPResponse) -> bytes:
    line = response.fp.readline(LINE)
    if not line:
        raise ConnectionError("the connection was dropped between two chunks")
    return line
