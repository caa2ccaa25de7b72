"""Assert that a call takes little time, on a machine that may be busy."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TRIES = 3


def at_once(call: Callable[[], T], seconds: float) -> T:
    """Return what the call returns, and fail where every one of three calls takes longer.

    A single call may meet a garbage collection of the whole test process, which takes a second after thousands of
    tests.
    """
    took = []
    for _ in range(TRIES):
        began = time.thread_time()
        result = call()
        took.append(time.thread_time() - began)
        if took[-1] < seconds:
            return result
    raise AssertionError(f"{took} seconds of the processor, and each should be below {seconds}")
