"""`BackboneConfig` says what `backbone:` in params.yaml may hold. This file must not load torch: checking params.yaml
must be quick.
"""

from dataclasses import dataclass
from typing import Literal

WITH_ENCODER = ("t5",)  # backbones that read the history by an encoder
CAUSAL = ("decoder", "hstu")  # backbones where no token sees a later one, so that every item can be a target


@dataclass(frozen=True)
class BackboneConfig:
    """The size of the network. The presets `tiger`, `decoder` and `hstu` have published sizes."""

    name: Literal["t5", "decoder", "hstu"] = "t5"
    encoder_layers: int = 2  # t5
    decoder_layers: int = 2  # all layers of decoder and hstu
    d_model: int = 64
    heads: int = 4
    d_head: int = 16
    d_ff: int = 256
    ff_hidden_layers: int = 1  # 1: T5's feed-forward; 2: GRID's, one more d_ff x d_ff layer
    dropout: float = 0.1
    separators: bool = True  # a learned token after each item of the history
    relative_buckets: int = 32
    relative_max_distance: int = 128
    embedding_std: float = 1.0  # t5, decoder: of the token and recency tables at the start; 1: T5's
    recency_items: int = 0  # t5: places, counted from the last item, with a learned vector; 0: none, as published
    hstu_attention: Literal["silu", "softplus"] = "silu"  # softplus: that of IntRR's code
    time_bias: bool = True  # hstu with silu: a learned bias of the time between two items

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
    def wants_times(self) -> bool:
        """True if the network reads the times of a history's items."""
        return self.name == "hstu" and self.hstu_attention == "silu" and self.time_bias
