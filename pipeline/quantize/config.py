"""What `quantize:` in params.yaml may say."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class QuantizeConfig:
    """How vectors become Semantic IDs."""

    method: Literal["rkmeans"] = "rkmeans"
    levels: int = 3  # codes per item, the deduplication digit not counted
    codes: int = 256  # codebook size of each level
    normalize_input: bool = True  # L2-normalise the embeddings first
    normalize_residuals: bool = True  # L2-normalise what each level leaves, as GRID does: fewer collisions
    iterations: int = 40  # Lloyd passes per level
    restarts: int = 1  # runs of k-means per level; the best one is kept
    digit_width: int = 0  # values the deduplication digit may take; 0: as many as the largest group needs

    def __post_init__(self) -> None:
        if self.levels < 1 or self.codes < 2 or self.iterations < 1 or self.restarts < 1:
            raise ValueError("quantize needs levels >= 1, codes >= 2, iterations >= 1 and restarts >= 1")
        if self.digit_width < 0:
            raise ValueError("quantize.digit_width must be 0 (as many as needed) or more")
