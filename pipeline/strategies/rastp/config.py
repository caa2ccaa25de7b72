"""`RastpConfig` says what `rastp:` in params.yaml may hold. This file must not load torch: checking params.yaml must be
quick.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RastpConfig:
    """Which encoder tokens go on. Defaults: the paper's, or where it is silent the better choice."""

    keep: float = 1 / 3
    min_tokens: int = 4
    after_layer: int = 2
    score: Literal["rastp", "l1", "l2", "attention", "random"] = "rastp"
    unit: Literal["token", "item"] = "token"
    separators: Literal["keep", "compete"] = "keep"
    method: Literal["prune", "avg_pool", "max_pool"] = "prune"
    pool_unit: Literal["token", "item"] = "token"
    base: Literal["real", "padded"] = "real"
    at_eval: bool = True
    keep_positions: bool = True
    padded_queries: Literal["ignore", "count"] = "ignore"
    score_dropout: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError("rastp.keep is the share of tokens that is kept, above 0 and at most 1")
        for name in ("min_tokens", "after_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"rastp.{name} must be 1 or more")

    @property
    def scores_mass(self) -> bool:
        """True if the scores of tokens depend on attention."""
        return self.method == "prune" and self.score in ("rastp", "attention")

    @property
    def counts_padding(self) -> bool:
        """True if padding changes which tokens are kept, so that batches must be padded."""
        return self.base == "padded" or (self.scores_mass and self.padded_queries == "count")
