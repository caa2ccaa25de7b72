"""What `evaluate:` in params.yaml may say."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How the test number is made."""

    beam: int
    decoding: Literal["constrained", "unconstrained", "exact"]  # exact scores the whole catalogue
    filter_seen: bool  # drop items of the user's history from the ranking
    batch_users: int
    bootstrap_samples: int  # for the 95% intervals
    cooccurrence_window: int  # baseline: two items co-occur when at most this many steps apart

    def __post_init__(self) -> None:
        if self.beam < 10:
            raise ValueError("evaluate.beam must be 10 or more: metrics are reported at 5 and 10")
        for name in ("batch_users", "bootstrap_samples", "cooccurrence_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluate.{name} must be 1 or more")
