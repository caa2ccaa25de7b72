"""`IntrrConfig` says what `intrr:` in params.yaml may hold. This file must not load torch: checking params.yaml must be
quick.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pipeline.knobs import Between, RatioBelow1


@dataclass(frozen=True, kw_only=True)
class IntrrConfig:
    """The settings of intrr: the recursive assignment network and its losses."""

    uid_dim: Annotated[int, Between(0, 16_384)]  # width of the UID table; 0: backbone.d_model
    uid_start: Literal["random", "codes"]
    uid_norm: Annotated[float, Between(0, 1e6)]  # weight of the loss that holds the mean square of a row at 1
    uid_dropout: RatioBelow1
    uid_content: bool  # a UID is its row and a linear map of the item's content vector
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

    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = {  # as in backbones/config.py
        "uid_start": "random",
        "uid_norm": 0.0,
        "uid_dropout": 0.0,
        "uid_content": False,
    }

    def __post_init__(self) -> None:
        if self.uid_start == "codes" and self.uid_dim:
            raise ValueError(
                "intrr.uid_start codes begins with vectors of the model's width, and intrr.uid_dim sets another one: "
                "set intrr.uid_dim=0, or intrr.uid_start=random"
            )
        if self.uid_content and self.ablation == "no_redistribution":
            raise ValueError(
                "intrr.uid_content adds to the UID, of which no item's vector is made with intrr.ablation "
                "no_redistribution: set intrr.uid_content=false, or intrr.ablation=none"
            )

    @property
    def aligns(self) -> bool:
        """Return whether the alignment loss is computed."""
        return self.alignment > 0 and self.ablation != "no_alignment"

    @property
    def reads_uid(self) -> bool:
        """Return whether a loss or an item's vector depends on the UID table."""
        return self.aligns or self.ablation != "no_redistribution"
