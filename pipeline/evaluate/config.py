"""Check the section `evaluate` of params.yaml."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.knobs import Between
from pipeline.metric_names import LARGEST_K


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """These settings say how the test metrics are made."""

    ranking: Literal["generator", "dense", "counting", "fused"]  # the headline's, and what a trained model answers with
    beam: Annotated[int, Between(LARGEST_K, 10_000, why=f"metrics count the first {LARGEST_K} items")]
    decoding: Literal["constrained", "unconstrained", "exact"]  # exact scores the whole catalogue
    filter_seen: bool | Literal["auto"]  # drop items of the user's history; auto: where that helps counting
    users: Annotated[int, Between(0, 1_000_000_000)]  # test users; more are sampled. 0: all
    batch_users: Annotated[int, Between(1, 1_000_000)]
    bootstrap_samples: Annotated[int, Between(1, 100_000)]  # for the 95% intervals
    # baseline: two items co-occur when at most this many steps apart
    cooccurrence_window: Annotated[int, Between(1, 1000)]
    # baseline: of each item at most so many others are listed, the heaviest
    cooccurrence_neighbours: Annotated[int, Between(1, 1_000_000)]
