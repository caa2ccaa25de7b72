"""The settings of the stage split: section `split` of params.yaml."""

from dataclasses import dataclass
from datetime import date
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Say which interactions are for training, for choosing a model, and for the final number."""

    protocol: Literal["leave_one_out", "temporal"]
    max_history: int  # most recent items the model sees before a target
    ties: Literal["source", "shuffled"]  # order of a user's interactions with equal timestamps
    valid_from: str  # temporal: first day of validation, YYYY-MM-DD (UTC)
    test_from: str  # temporal: first day of test

    def __post_init__(self) -> None:
        if self.max_history < 1:
            raise ValueError("split.max_history must be 1 or more")
        if self.protocol == "temporal":
            if not (self.valid_from and self.test_from):
                raise ValueError("split.protocol temporal needs split.valid_from and split.test_from (YYYY-MM-DD)")
            if self._day("valid_from") >= self._day("test_from"):
                raise ValueError("split.valid_from must lie before split.test_from")

    def _day(self, name: str) -> date:
        try:
            return date.fromisoformat(getattr(self, name))
        except ValueError:
            raise ValueError(f"split.{name} is {getattr(self, name)!r}, expected a day as YYYY-MM-DD") from None
