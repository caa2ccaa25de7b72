"""`SkipgrConfig` says what `skipgr:` in params.yaml may hold. This file must not load torch: checking params.yaml must
be quick.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class SkipgrConfig:
    """The settings of skipgr: what training skips by the entropy of the model that it trains."""

    rule: Literal["low_entropy", "high_entropy", "static_low_entropy", "random", "random_step", "static_random", "loss"]
    token_ratio: float
    level_ratios: tuple[float, ...]  # one per scored level; empty: token_ratio for each
    apply_to: Literal["loss", "input", "both"]
    input_unit: Literal["token", "item"]
    rescore_every: int  # epochs
    include_digit: bool
    sequence_ratio: float
    sequence_share: float  # 0: sequence_ratio counts
    sequence_unit: Literal["user", "window"]
    max_weight: float
    normalise: Literal["nominal", "kept"]
    anneal_epochs: int
    at_eval: bool

    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = {"at_eval": False}  # as in backbones/config.py

    def __post_init__(self) -> None:
        for name, value in (
            ("token_ratio", self.token_ratio),
            ("sequence_ratio", self.sequence_ratio),
            ("sequence_share", self.sequence_share),
            *(("level_ratios", r) for r in self.level_ratios),
        ):
            if not 0 <= value < 1:
                raise ValueError(f"skipgr.{name} is a share that is skipped, at least 0 and below 1")
        if self.rescore_every < 1:
            raise ValueError("skipgr.rescore_every must be 1 or more")
        if self.anneal_epochs < 0:
            raise ValueError("skipgr.anneal_epochs must be 0 or more")
        if self.max_weight < 1:
            raise ValueError("skipgr.max_weight must be 1 or more")
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
