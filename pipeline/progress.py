"""Print progress with rate and time left: a live bar in a terminal, a plain line every few seconds elsewhere.

DVC and its queue pipe a stage's output, where a bar that redraws itself is unreadable and a line that is not flushed
is not seen.
"""

import sys
import time
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
    """

    def __init__(self, label: str, total: int, unit: str, start: int = 0, every: float = 10.0):
        self.label = label
        self.total = total
        self.unit = unit
        self.every = every
        self.done = self.start = start
        self.note = ""
        self.live = sys.stderr.isatty()
        self.began = self.shown = time.monotonic()

    def update(self, amount: int, note: str = "") -> None:
        """Add `amount` to what is done, and show `note` (such as the current loss) at the end of the line."""
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        if now - self.shown >= (0.1 if self.live else self.every):
            self.shown = now
            self._show(end="\r" if self.live else "\n")

    def line(self) -> str:
        """Return the line: `train: 120,000 of 250,000 windows (48%), 6,100/s, 0:21 left, loss 9.12`."""
        rate = (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)
        text = f"{self.label}: {self.done:,}"
        if self.total:
            text += f" of {self.total:,} {self.unit} ({self.done / self.total:.0%})"
        else:
            text += f" {self.unit}"
        text += f", {rate:,.0f}/s"
        if self.total and rate > 0:
            left = int(max(self.total - self.done, 0) / rate)
            text += f", {left // 60}:{left % 60:02d} left"
        return text + (f", {self.note}" if self.note else "")

    def _show(self, end: str) -> None:
        if is_quiet():
            return
        say(self.line().ljust(100 if self.live else 0), end=end, error=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._show(end="\n")
