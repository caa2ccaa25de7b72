"""`RastpConfig` says what `rastp:` in params.yaml may hold. This file must not load torch: checking params.yaml must be
quick.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RastpConfig:
    """The settings of rastp: which encoder tokens go on."""

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
        """Return whether the scores of tokens depend on attention."""
        return self.method == "prune" and self.score in ("rastp", "attention")

    @property
    def counts_padding(self) -> bool:
        """Return whether padding changes which tokens are kept, so that batches must be padded."""
        return self.base == "padded" or (self.scores_mass and self.padded_queries == "count")
