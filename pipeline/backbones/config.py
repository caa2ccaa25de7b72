"""`BackboneConfig` says what `backbone:` in params.yaml may hold. This file must not load torch: checking params.yaml
must be quick.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

WITH_ENCODER = ("t5",)  # backbones that read the history by an encoder
CAUSAL = ("decoder", "hstu", "sasrec")  # backbones where no token sees a later one, so that every item can be a target
OVER_ITEMS = ("sasrec",)  # backbones that read and predict items themselves, not their Semantic IDs


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The size of the network. The presets `tiger`, `decoder` and `hstu` have published sizes."""

    name: Literal["t5", "decoder", "hstu", "sasrec"]
    encoder_layers: int  # t5
    decoder_layers: int  # all layers of decoder, hstu and sasrec
    d_model: int
    heads: int
    d_head: int
    d_ff: int
    ff_hidden_layers: int  # 1: T5's feed-forward; 2: GRID's, one more d_ff x d_ff layer
    dropout: float
    separators: bool  # a learned token after each item of the history
    relative_buckets: int
    relative_max_distance: int
    embedding_std: float  # t5, decoder: initial std of the token and recency tables; 1: T5's
    recency_items: int  # t5: the last items of a history that have a learned vector each; 0: none, as published
    hstu_attention: Literal["silu", "softplus"]  # softplus: as in IntRR's code
    time_bias: bool  # hstu with silu: a learned bias of the time between two items
    content: bool  # sasrec: an item is its id and its content vector, not its id alone

    # Keys that are newer than the first saved models, and the value that makes an older model compute as it did then.
    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = {
        "embedding_std": 1.0,
        "recency_items": 0,
        "hstu_attention": "silu",
        "time_bias": True,
        "content": True,
    }

    def __post_init__(self) -> None:
        for name in ("encoder_layers", "decoder_layers", "d_model", "heads", "d_head", "d_ff", "ff_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"backbone.{name} must be 1 or more")
        if self.recency_items < 0:
            raise ValueError("backbone.recency_items must be 0 or more")
        if self.embedding_std <= 0:
            raise ValueError("backbone.embedding_std must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError("backbone.dropout must lie in [0, 1)")
        if self.relative_buckets < 4 or self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError("backbone.relative_buckets must be 4 or more, and relative_max_distance above half of it")

    @property
    def over_items(self) -> bool:
        """Return whether the network reads and predicts items themselves, not their Semantic IDs."""
        return self.name in OVER_ITEMS

    @property
    def wants_times(self) -> bool:
        """Return whether the network reads the times of a history's items."""
        return self.name == "hstu" and self.hstu_attention == "silu" and self.time_bias
