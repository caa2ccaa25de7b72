"""`IntrrConfig` says what `intrr:` in params.yaml may hold. This file must not load torch: checking params.yaml must be
quick.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class IntrrConfig:
    """The settings of intrr: the recursive assignment network and its losses."""

    uid_dim: int  # width of the UID table; 0: backbone.d_model
    hidden: int  # width of the MLPs' hidden layer
    digit_width: int  # vectors of the deduplication digit's codebook; 0: as many as the Semantic IDs have
    mix: Literal["soft", "straight_through"]
    context: Literal["last", "sum"]
    codebooks: Literal["random", "quantizer"]  # the vectors that the network's codebooks begin with
    alignment: float  # weight of the alignment loss (lambda)
    alignment_items: Literal["batch_distinct", "batch_occurrences", "sample", "all"]
    alignment_sample: int  # items of `sample`
    tie_break: Literal["digit", "uid"]
    ablation: Literal["none", "no_teacher_forcing", "no_alignment", "no_redistribution", "no_sharing"]

    def __post_init__(self) -> None:
        for name in ("uid_dim", "digit_width", "alignment"):
            if getattr(self, name) < 0:
                raise ValueError(f"intrr.{name} must be 0 or more")
        for name in ("hidden", "alignment_sample"):
            if getattr(self, name) < 1:
                raise ValueError(f"intrr.{name} must be 1 or more")

    @property
    def aligns(self) -> bool:
        """Return whether the alignment loss is computed."""
        return self.alignment > 0 and self.ablation != "no_alignment"

    @property
    def reads_uid(self) -> bool:
        """Return whether a loss or an item's vector depends on the UID table."""
        return self.aligns or self.ablation != "no_redistribution"
