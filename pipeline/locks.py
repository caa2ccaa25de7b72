"""Let one process at a time work on a folder, and let the others wait or be refused, whichever way the first one ends.

The lock is `flock`, which the kernel releases when its process ends. The file holds the name of that process.
"""

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from pipeline.errors import UserError
from pipeline.printing import say

LOOK = 0.2  # seconds between two looks at a lock that is held


class BusyError(Exception):
    """Another process holds the lock; `holder` names it."""

    def __init__(self, holder: str):
        super().__init__(holder)
        self.holder = holder


@contextmanager
def alone(path: Path, waits: Callable[[str], None] | None) -> Iterator[None]:
    """Hold the lock file `path`.

    Args:
        waits: called once with the holder's name before waiting for it; None: do not wait.

    Raises:
        BusyError: the lock is held, and `waits` is None.
    """
    told = False
    while (file := _held(path)) is None:
        if waits is None:
            raise BusyError(holder(path))
        if not told:
            waits(holder(path))
            told = True
        time.sleep(LOOK)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before it is released, so that nobody locks a file that is about to go
        file.close()


def holder(path: Path) -> str:
    """Return who holds the lock, such as `process 4711 (python -m pipeline train)`."""
    try:
        return path.read_text() or "another process"
    except OSError:
        return "another process"


def is_awaited(path: Path) -> bool:
    """Return whether a process waits, as `waiting` marks it."""
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def in_turn(work: Path, others: Sequence[Path], *, waits: str, busy: str, both: str) -> Iterator[None]:
    """Let one process at a time do work whose parts lie in the folder `work`.

    A stage that DVC started waits for another process, such as a second queue worker with the same settings: the other
    one then leaves its parts (`remove_unless_awaited`), and this one goes on from them. A second stage by hand is
    refused.

    Args:
        others: more lock files to hold, such as that of the output.
        waits: what is printed before waiting; {holder} stands for the process that is at work.
        busy: what the error says, likewise.
        both: why two at once are refused.

    Raises:
        UserError: this process was started by hand, and another one is at work.
    """
    with ExitStack() as held, ExitStack() as mark:

        def wait(holder: str) -> None:
            mark.enter_context(waiting(work.with_suffix(".waits")))
            say(waits.format(holder=holder))

        try:
            for path in (*others, work.with_suffix(".lock")):
                held.enter_context(alone(path, wait if os.environ.get("DVC_STAGE") else None))
        except BusyError as error:
            raise UserError(
                busy.format(holder=error.holder),
                both,
                "wait until it has ended, or stop it; then run the same command again",
            ) from None
        mark.close()
        yield


def remove_unless_awaited(work: Path) -> None:
    """Remove the folder with the parts of finished work; those that another process awaits (`in_turn`) stay."""
    waits = work.with_suffix(".waits")
    if not is_awaited(waits):
        waits.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Mark that this process waits, until the end of the block or of the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _held(path: Path) -> TextIOWrapper | None:
    """Lock the file and write this process's name into it; None where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The last holder may have removed the file after this process opened it.
        if path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise BlockingIOError
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}")
        file.flush()
    except (BlockingIOError, FileNotFoundError):
        file.close()
        return None
    except OSError as error:
        file.close()
        raise OSError(error.errno, error.strerror, str(path)) from error
    return file
