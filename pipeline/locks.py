"""Let one process at a time work on a folder, and let the others wait or be refused, whichever way the first one ends.

The lock is `flock`, which the kernel releases when its process ends. The file holds the name of that process.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

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
