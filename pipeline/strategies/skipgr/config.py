"""`SkipgrConfig` says what `skipgr:` in params.yaml may hold. This file must not load torch: checking params.yaml must
be quick.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SkipgrConfig:
    """What training skips by the model's own entropy. Defaults: the paper's, or where it is silent the safer choice."""

    rule: Literal[
        "low_entropy", "high_entropy", "static_low_entropy", "random", "random_step", "static_random", "loss"
    ] = "low_entropy"
    token_ratio: float = 0.1
    level_ratios: tuple[float, ...] = ()  # one per scored level; empty: token_ratio for each
    apply_to: Literal["loss", "input", "both"] = "loss"
    input_unit: Literal["token", "item"] = "token"
    rescore_every: int = 4  # passes
    include_digit: bool = False
    sequence_ratio: float = 0.3
    sequence_share: float = 0.0  # 0: sequence_ratio counts
    sequence_unit: Literal["user", "window"] = "user"
    max_weight: float = 4.0
    normalise: Literal["nominal", "kept"] = "nominal"
    anneal_epochs: int = 0
    at_eval: bool = False

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
                f"{1 / (1 - self.sequence_ratio):g}, above skipgr.max_weight {self.max_weight:g}"
            )

    @property
    def largest_ratio(self) -> float:
        """The largest probability r of being skipped that `max_weight` allows, as 1 / (1 - r) is the weight."""
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
