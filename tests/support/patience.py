"""Waiting that holds on a busy machine: tests wait for what happens, and a limit only ends a test that fails."""

import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

PATIENCE = 600.0  # seconds; a command may take many times as long beside other work
Process = subprocess.Popen[Any]


def wait_until(
    true: Callable[[], object],
    what: str,
    seconds: float = PATIENCE,
    look: float = 0.05,
    *,
    alive: Process | Sequence[Process] = (),
    output: Callable[[], str] | None = None,
) -> None:
    """Return once `true` returns something true; fail with `what` after `seconds`.

    Args:
        look: the seconds between two looks.
        alive: the processes that are to make it true and to be at work still; the end of one fails at once.
        output: returns what stands below `what` in a failure, such as the `read_text` of a log; None: what an ended
            process wrote into its pipes.
    """
    processes = [alive] if isinstance(alive, subprocess.Popen) else alive
    deadline = time.monotonic() + seconds
    while True:
        done = true()
        for process in processes:
            code = process.poll()
            assert code is None, f"{what}: process {process.pid} has ended with {code}\n{(output or _piped(process))()}"
        if done:
            return
        assert time.monotonic() < deadline, f"{what}\n{output()}" if output else what
        time.sleep(look)


def _piped(process: Process) -> Callable[[], str]:
    """Return what reads the pipes of a process that has ended."""

    def read() -> str:
        with suppress(subprocess.TimeoutExpired):  # a child of the process holds the pipes
            return "".join(str(text) for text in process.communicate(timeout=5) if text)
        return ""

    return read


def answers(address: str) -> bool:
    """Return whether a server answers at the address."""
    with suppress(OSError), urllib.request.urlopen(address, timeout=5):
        return True
    return False
