"""The interface of what watches a training: it learns of the start and of each validation, and changes nothing."""

from collections.abc import Mapping
from typing import Protocol


class Observer(Protocol):
    """An `Observer` must return at once, and must not raise: training waits for it."""

    def begin(self, training: str, start: float) -> None:
        """Take note that a training starts, or goes on from its checkpoint.

        Args:
            training: fingerprint of settings, inputs and code.
            start: when it first started, in seconds since 1970.
        """

    def point(self, row: Mapping[str, float], at: float) -> None:
        """Take note of a validation: its row of the history, and when it was, in seconds since 1970."""
