"""The settings of the stage split: section `split` of params.yaml."""

from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal

from pipeline.knobs import Between


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Say which interactions are for training, for choosing a model, and for the final number."""

    protocol: Literal["leave_one_out", "temporal"]
    max_history: Annotated[int, Between(1, 100_000)]  # most recent items the model sees before a target
    ties: Literal["source", "shuffled"]  # order of a user's interactions with equal timestamps
    valid_from: str  # temporal: first day of validation, YYYY-MM-DD (UTC)
    test_from: str  # temporal: first day of test

    def __post_init__(self) -> None:
        days = {name: self._day(name) for name in ("valid_from", "test_from") if getattr(self, name)}
        if self.protocol == "temporal":
            if len(days) < 2:
                raise ValueError("split.protocol temporal needs split.valid_from and split.test_from (YYYY-MM-DD)")
            if days["valid_from"] >= days["test_from"]:
                raise ValueError("split.valid_from must lie before split.test_from")

    def _day(self, name: str) -> date:
        try:
            return date.fromisoformat(getattr(self, name))
        except ValueError:
            raise ValueError(f"split.{name} is {getattr(self, name)!r}, expected a day as YYYY-MM-DD") from None
