"""`RastpConfig` says what `rastp:` in params.yaml may hold. This file must not load torch: checking params.yaml must be
quick.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.knobs import Between


@dataclass(frozen=True, kw_only=True)
class RastpConfig:
    """The settings of rastp: which encoder tokens go on."""

    keep: Annotated[float, Between(1e-6, 1)]
    min_tokens: Annotated[int, Between(1, 1_000_000)]
    after_layer: Annotated[int, Between(1, 128)]
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

    @property
    def scores_mass(self) -> bool:
        """Return whether the scores of tokens depend on attention."""
        return self.method == "prune" and self.score in ("rastp", "attention")

    @property
    def counts_padding(self) -> bool:
        """Return whether padding changes which tokens are kept, so that batches must be padded."""
        return self.base == "padded" or (self.scores_mass and self.padded_queries == "count")
