"""`RastpConfig` says what `rastp:` in params.yaml may hold. This file must not load torch: checking params.yaml must be
quick.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pipeline.knobs import Between


@dataclass(frozen=True, kw_only=True)
class RastpConfig:
    """The settings of rastp: which encoder tokens go on."""

    keep: Annotated[float, Between(1e-6, 1)]
    min_tokens: Annotated[int, Between(1, 1_000_000)]
    keep_last_item: bool
    after_layer: Annotated[int, Between(1, 128)]
    score: Literal["rastp", "l1", "l2", "attention", "random"]
    unit: Literal["token", "item"]
    separators: Literal["keep", "compete"]
    method: Literal["prune", "avg_pool", "max_pool"]
    pool_unit: Literal["token", "item"]
    base: Literal["real", "padded"]
    base_length: Annotated[int, Between(0, 1_000_000)]  # positions; 0: those of padded batches
    at_eval: bool
    keep_positions: bool
    padded_queries: Literal["ignore", "count"]
    score_dropout: Literal["before", "after"]

    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = {
        "keep_last_item": False,
        "base_length": 0,
    }  # see backbones/config.py

    def __post_init__(self) -> None:
        if self.keep_last_item and self.method != "prune":
            raise ValueError(
                f"rastp.keep_last_item is for rastp.method prune: with {self.method} every token is in a pool. Set "
                "rastp.keep_last_item=false"
            )
        if self.base_length and self.base != "padded":
            raise ValueError(
                "rastp.base_length is the length of rastp.base padded, and rastp.base is real: set rastp.base=padded, "
                "or rastp.base_length=0"
            )

    @property
    def scores_mass(self) -> bool:
        """Return whether the scores of tokens depend on attention."""
        return self.method == "prune" and self.score in ("rastp", "attention")

    @property
    def counts_padding(self) -> bool:
        """Return whether padding changes which tokens are kept, so that batches must be padded."""
        counts_positions = self.base == "padded" and not self.base_length
        return counts_positions or (self.scores_mass and self.padded_queries == "count")
