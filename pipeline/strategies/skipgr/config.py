"""`SkipgrConfig` says what `skipgr:` in params.yaml may hold. This file must not load torch: checking params.yaml must
be quick.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pipeline.knobs import Between, RatioBelow1


@dataclass(frozen=True, kw_only=True)
class SkipgrConfig:
    """The settings of skipgr: what training skips by the entropy of the model that it trains."""

    rule: Literal["low_entropy", "high_entropy", "static_low_entropy", "random", "random_step", "static_random", "loss"]
    token_ratio: RatioBelow1
    level_ratios: tuple[RatioBelow1, ...]  # one per scored level; empty: token_ratio for each
    apply_to: Literal["loss", "input", "both"]
    input_unit: Literal["token", "item"]
    rescore_every: Annotated[int, Between(1, 1_000_000)]  # epochs
    first_skipping_epoch: Annotated[int, Between(1, 1_000_000)]  # epochs count from 0
    include_digit: bool
    sequence_ratio: RatioBelow1
    sequence_share: RatioBelow1  # 0: sequence_ratio counts
    sequence_unit: Literal["user", "window"]
    max_weight: Annotated[float, Between(1, 1e6)]
    normalise: Literal["nominal", "kept"]
    equal_steps: bool  # as many optimizer steps as `full`, with fewer windows in each
    anneal_epochs: Annotated[int, Between(0, 1_000_000)]
    at_eval: bool

    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = {
        "at_eval": False,
        "first_skipping_epoch": 1,
        "equal_steps": False,
    }  # as in backbones/config.py

    def __post_init__(self) -> None:
        if self.at_eval and self.apply_to == "loss":
            raise ValueError(
                "skipgr.at_eval skips in histories, and skipgr.apply_to loss does not: set "
                "skipgr.apply_to=input or both, or skipgr.at_eval=false"
            )
        if not self.sequence_share and self.sequence_ratio > self.largest_ratio:
            raise ValueError(
                f"skipgr.sequence_ratio {self.sequence_ratio:g} weighs what is kept by "
                f"{1 / (1 - self.sequence_ratio):g}, above skipgr.max_weight {self.max_weight:g}: "
                "lower skipgr.sequence_ratio or raise skipgr.max_weight"
            )

    @property
    def largest_ratio(self) -> float:
        """Return the largest probability r of being skipped that `max_weight` allows, as 1 / (1 - r) is the weight."""
        return 1 - 1 / self.max_weight

    @property
    def skips_tokens(self) -> bool:
        return any(self.level_ratios) if self.level_ratios else self.token_ratio > 0

    @property
    def skips_sequences(self) -> bool:
        return self.sequence_ratio > 0 or self.sequence_share > 0

    @property
    def skips_targets(self) -> bool:
        return self.skips_tokens and self.apply_to in ("loss", "both")

    @property
    def skips_inputs(self) -> bool:
        return self.skips_tokens and self.apply_to in ("input", "both")
