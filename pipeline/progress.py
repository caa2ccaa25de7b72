"""Print progress with rate and time left: a live bar in a terminal, a plain line every few seconds elsewhere.

DVC and its queue pipe a stage's output, where a bar that redraws itself is unreadable and a line that is not flushed
is not seen.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from pipeline.printing import is_quiet, say


class Progress:
    """A `Progress` counts towards `total` and says how fast.

    Args:
        label: what is going on, such as "train".
        total: amount at the end, in `unit`; 0 when unknown.
        unit: plural noun, such as "windows".
        start: amount already done, by an earlier run that was stopped; does not count for the rate.
        every: seconds between plain lines.
        brief: leave out the line at the end, as for work that takes less than `every` as a rule.
    """

    def __init__(self, label: str, total: int, unit: str, start: int = 0, every: float = 10.0, brief: bool = False):
        self.label = label
        self.total = total
        self.unit = unit
        self.every = every
        self.brief = brief
        self.done = self.start = start
        self.note = ""
        self.live = sys.stderr.isatty()
        self.began = self.shown = time.monotonic()
        self._paused = 0.0  # seconds
        self._pauses = 0
        self._planned: Callable[[], int] = lambda: 0
        self._noun = ""

    def pauses(self, planned: Callable[[], int], noun: str) -> None:
        """Say what the pauses are, and by a function how many are to come, so that the time left includes them."""
        self._planned = planned
        self._noun = noun

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Count the time inside as a pause: it is no part of the rate."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - began
            self._pauses += 1

    def update(self, amount: int, note: str = "") -> None:
        """Add `amount` to what is done, and show `note` (such as the current loss) at the end of the line."""
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        if now - self.shown >= (0.1 if self.live else self.every):
            self.shown = now
            self._show(end="\r" if self.live else "\n")

    def line(self) -> str:
        """Return the line: `train: 120,000 of 250,000 windows (48%), 6,100/s, 0:21 left, loss 9.12`.

        Time left has the pauses to come, each as long as those before it on average. Before the first pause they are
        named: `0:21 left and 4 validations`.
        """
        rate = (self.done - self.start) / max(time.monotonic() - self.began - self._paused, 1e-9)
        text = f"{self.label}: {self.done:,}"
        total = max(self.total, self.done) if self.total else 0  # the last step may go beyond the goal
        if total:
            text += f" of {total:,} {self.unit} ({self.done / total:.0%})"
        else:
            text += f" {self.unit}"
        text += f", {rate:,.0f}/s"
        if total and rate > 0:
            to_come = self._planned()
            left = int((total - self.done) / rate + to_come * self._paused / max(self._pauses, 1))
            text += f", {left // 60}:{left % 60:02d} left"
            if to_come and not self._pauses:
                text += f" and {to_come} {self._noun}{'s' if to_come > 1 else ''}"
        return text + (f", {self.note}" if self.note else "")

    def _show(self, end: str) -> None:
        if is_quiet():
            return
        say(self.line().ljust(100 if self.live else 0), end=end, error=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.brief:
            self._show(end="\n")
        elif self.live and not is_quiet():
            say(" " * 100, end="\r", error=True)
