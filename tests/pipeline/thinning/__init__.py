"""thinning: a strategy for the tests, which drops a share of the windows of each epoch at random.

test_pipeline.py copies this folder to pipeline/strategies/thinning, as a contributor would write it there.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.strategies.spec import StrategySpec

if TYPE_CHECKING:
    from pipeline.strategies.base import NetworkTraits, Sampler, TrainingPlan


@dataclass(frozen=True, kw_only=True)
class ThinningConfig:
    """The share of windows that is dropped."""

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError("thinning.share is a share that is dropped, at least 0 and below 1")


def _sampler(settings: ThinningConfig, plan: "TrainingPlan", traits: "NetworkTraits") -> "Sampler":
    from pipeline.strategies.thinning.sampler import ThinningSampler

    sampler: Sampler = ThinningSampler(settings, plan)
    return sampler


SPEC = StrategySpec(
    name="thinning",
    summary="a share of the windows of each pass is dropped at random",
    settings=ThinningConfig,
    sampler=_sampler,
    composes_with=frozenset({"rastp"}),
)
