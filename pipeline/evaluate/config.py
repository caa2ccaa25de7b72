"""Check the section `evaluate` of params.yaml."""

from dataclasses import dataclass
from typing import Literal

from pipeline.metric_names import LARGEST_K


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """These settings say how the test metrics are made."""

    beam: int
    decoding: Literal["constrained", "unconstrained", "exact"]  # exact scores the whole catalogue
    filter_seen: bool  # drop items of the user's history from the ranking
    batch_users: int
    bootstrap_samples: int  # for the 95% intervals
    cooccurrence_window: int  # baseline: two items co-occur when at most this many steps apart

    def __post_init__(self) -> None:
        if self.beam < LARGEST_K:
            raise ValueError(f"evaluate.beam must be {LARGEST_K} or more: metrics count the first {LARGEST_K} items")
        for name in ("batch_users", "bootstrap_samples", "cooccurrence_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluate.{name} must be 1 or more")
