"""`IntrrConfig` says what `intrr:` in params.yaml may hold. This file must not load torch: checking params.yaml must be
quick.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.knobs import Between


@dataclass(frozen=True, kw_only=True)
class IntrrConfig:
    """The settings of intrr: the recursive assignment network and its losses."""

    uid_dim: Annotated[int, Between(0, 16_384)]  # width of the UID table; 0: backbone.d_model
    hidden: Annotated[int, Between(1, 65_536)]  # width of the MLPs' hidden layer
    # vectors of the deduplication digit's codebook; 0: as many as the Semantic IDs have
    digit_width: Annotated[int, Between(0, 1_000_000)]
    mix: Literal["soft", "straight_through"]
    context: Literal["last", "sum"]
    codebooks: Literal["random", "quantizer"]  # the vectors that the network's codebooks begin with
    alignment: Annotated[float, Between(0, 1e6)]  # weight of the alignment loss (lambda)
    alignment_items: Literal["batch_distinct", "batch_occurrences", "sample", "all"]
    alignment_sample: Annotated[int, Between(1, 10_000_000)]  # items of `sample`
    tie_break: Literal["digit", "uid"]
    ablation: Literal["none", "no_teacher_forcing", "no_alignment", "no_redistribution", "no_sharing"]

    @property
    def aligns(self) -> bool:
        """Return whether the alignment loss is computed."""
        return self.alignment > 0 and self.ablation != "no_alignment"

    @property
    def reads_uid(self) -> bool:
        """Return whether a loss or an item's vector depends on the UID table."""
        return self.aligns or self.ablation != "no_redistribution"
