"""What `rastp:` in params.yaml may say. Light on purpose: checking params.yaml must not load torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RastpConfig:
    """Which encoder tokens go on."""

    keep: float
    min_tokens: int
    after_layer: int
    score: Literal["rastp", "l1", "l2", "attention", "random"]
    unit: Literal["token", "item"]
    separators: Literal["keep", "compete"]
    method: Literal["prune", "avg_pool", "max_pool"]
    pool_unit: Literal["token", "item"]
    base: Literal["real", "padded"]
    at_eval: bool
    keep_positions: bool
    padded_queries: Literal["ignore", "count"]
    score_dropout: Literal["before", "after"]

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError("rastp.keep is the share of tokens that is kept, above 0 and at most 1")
        for name in ("min_tokens", "after_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"rastp.{name} must be 1 or more")

    @property
    def scores_mass(self) -> bool:
        """Whether the choice rests on attention."""
        return self.method == "prune" and self.score in ("rastp", "attention")

    @property
    def counts_padding(self) -> bool:
        """Whether padding changes what is kept, so that batches have to have it."""
        return self.base == "padded" or (self.scores_mass and self.padded_queries == "count")
