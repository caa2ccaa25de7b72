"""Show a training in MLflow while it goes on, from a thread that drops what it cannot tell in time.

Training puts its points into a queue and never waits. The thread loads MLflow, which takes seconds, and ends silently
where the store is away: `track` makes the record whole in any case. The command `train` starts it, and not the stage:
no part of training depends on it.
"""

import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Any

from pipeline.results.run_names import RunName
from pipeline.stopping import Stopped

CAPACITY = 1000  # points that wait; more are dropped
LOOK = 10.0  # seconds between two looks at the load of the machine
FAREWELL = 2.0  # seconds that the end of training waits for the last points


@dataclass(frozen=True)
class Validated:
    """A `Validated` is a validation's row of the history, and when it was."""

    row: Mapping[str, float]
    at: float


class Live:
    """A `Live` observes one training (`pipeline.training.observer`) and hands it to MLflow; use it in a `with`.

    Args:
        params: every parameter, flat.
        experiment: name of the MLflow experiment.
    """

    def __init__(self, params: dict[str, Any], name: RunName, experiment: str):
        self.params = params
        self.name = name
        self.experiment = experiment
        self.training = ""
        self.start = 0.0
        self._points: queue.Queue[Validated | str] = queue.Queue(CAPACITY)
        self._thread: threading.Thread | None = None

    def begin(self, training: str, start: float) -> None:
        """Start the thread."""
        self.training = training
        self.start = start
        self._thread = threading.Thread(target=self._work, daemon=True, name="live")
        self._thread.start()

    def point(self, row: Mapping[str, float], at: float) -> None:
        """Put a point into the queue, or drop it where the queue is full."""
        self._put(Validated(dict(row), at))

    def __enter__(self) -> "Live":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell MLflow how training ended, and wait a moment for it."""
        if self._thread:
            stopped = kind is not None and issubclass(kind, Stopped | KeyboardInterrupt)
            self._put("FINISHED" if kind is None else "KILLED" if stopped else "FAILED")
            self._thread.join(FAREWELL)

    def _put(self, entry: Validated | str) -> None:
        try:
            self._points.put_nowait(entry)
        except queue.Full:
            return

    def _work(self) -> None:
        """Hand points to MLflow until the end is told; any fault of the store ends it without a word."""
        try:
            run = import_module("pipeline.results.mlflow_live").LiveRun(
                self.params, self.name, self.experiment, training=self.training, start=self.start
            )
            looked = 0.0
            while True:
                if time.monotonic() - looked >= LOOK:
                    looked = time.monotonic()
                    run.log_load()
                try:
                    entry = self._points.get(timeout=LOOK)
                except queue.Empty:
                    continue
                if isinstance(entry, str):
                    run.end(entry)
                    return
                run.log_point(entry)
        except Exception:  # whatever it is, training goes on
            return


def leads() -> bool:
    """Return whether this is the first, or the only, process of a training."""
    return os.environ.get("RANK", "0") == "0"
