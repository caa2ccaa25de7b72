"""Waiting that holds on a busy machine: tests wait for what happens, and a limit only ends a test that fails."""

import time
from collections.abc import Callable

PATIENCE = 600.0  # seconds; a command may take many times as long beside other work


def wait_until(true: Callable[[], object], what: str, seconds: float = PATIENCE, look: float = 0.05) -> None:
    """Return once `true` returns something true; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(look)
