"""`BackboneConfig` says what `backbone:` in params.yaml may hold. This file must not load torch: checking params.yaml
must be quick.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pipeline.knobs import Between, RatioBelow1
from pipeline.metric_names import OVER_ITEMS as OVER_ITEMS

WITH_ENCODER = ("t5",)  # backbones that read the history by an encoder
MOST_WEIGHTS = 20_000_000_000  # 80 GB in float32
# backbones where no token sees a later one, so that every item can be a target
CAUSAL = ("decoder", "hstu", "sasrec", "gr")
WITH_HSTU = ("hstu", "gr")  # backbones of HSTU's layers


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The size of the network. The presets `tiger`, `decoder`, `hstu` and `gr` have published sizes."""

    name: Literal["t5", "decoder", "hstu", "sasrec", "gr"]
    encoder_layers: Annotated[int, Between(1, 128)]  # t5
    decoder_layers: Annotated[int, Between(1, 128)]  # all layers of all but t5
    d_model: Annotated[int, Between(1, 16_384)]
    heads: Annotated[int, Between(1, 256)]
    d_head: Annotated[int, Between(1, 1024)]
    d_ff: Annotated[int, Between(1, 65_536)]
    ff_hidden_layers: Annotated[int, Between(1, 16)]  # 1: T5's feed-forward; 2: GRID's, one more d_ff x d_ff layer
    dropout: RatioBelow1
    separators: bool  # a learned token after each item of the history
    relative_buckets: Annotated[int, Between(4, 4096)]
    relative_max_distance: Annotated[int, Between(3, 1_000_000)]
    # t5, decoder: initial std of the token and recency tables; 1: T5's
    embedding_std: Annotated[float, Between(1e-6, 1000)]
    # t5: the last items of a history that have a learned vector each; 0: none, as published
    recency_items: Annotated[int, Between(0, 100_000)]
    hstu_attention: Literal["silu", "softplus"]  # hstu, gr; softplus: as in IntRR's code
    time_bias: bool  # hstu, gr with silu: a learned bias of the time between two items
    content: bool  # sasrec, gr: an item is its id and its content vector, not its id alone
    # sasrec, gr: an item's logit is a cosine over the temperature; 0: a dot product
    temperature: Annotated[float, Between(0, 1000)]
    actions: bool  # decoder, hstu, sasrec, gr: an action token follows each item, and is predicted too
    item_rows: bool  # decoder, hstu with actions: the head of actions sees a learned row of the target beside the state
    # sasrec, gr: draws that stand for the catalogue in training's softmax; 0: all items of all but huge catalogues
    negatives: Annotated[int, Between(0, 10_000_000)]

    # Keys that are newer than the first saved models, and the value that makes an older model compute as it did then.
    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = {
        "embedding_std": 1.0,
        "recency_items": 0,
        "hstu_attention": "silu",
        "time_bias": True,
        "content": True,
        "temperature": 0.0,
        "negatives": 0,
        "actions": False,
        "item_rows": False,
    }

    def __post_init__(self) -> None:
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError("backbone.relative_max_distance must be above half of backbone.relative_buckets")
        if self.actions and self.name not in CAUSAL:
            raise ValueError(
                f"backbone.actions needs a backbone that reads item by item, and {self.name} does not: set "
                f"backbone.name to {' or '.join(CAUSAL)}, or backbone.actions to false"
            )
        if self.actions and self.separators and not self.over_items:
            raise ValueError(
                "backbone.actions ends each item by its action, where backbone.separators has a separator: set "
                "backbone.separators to false"
            )
        if self.weights > MOST_WEIGHTS:
            raise ValueError(
                f"backbone has about {self.weights:.1e} weights, {MOST_WEIGHTS:.0e} at most: lower encoder_layers, "
                "decoder_layers, d_model or d_ff"
            )

    @property
    def weights(self) -> int:
        """Return about how many weights the layers have, both stacks counted."""
        feed_forward = 2 * self.d_model * self.d_ff + (self.ff_hidden_layers - 1) * self.d_ff**2
        attention = 4 * self.d_model * self.heads * self.d_head
        return (self.encoder_layers + self.decoder_layers) * (attention + feed_forward)

    @property
    def over_items(self) -> bool:
        """Return whether the network reads and predicts items themselves, not their Semantic IDs."""
        return self.name in OVER_ITEMS

    def positions_per_item(self, levels: int) -> int:
        """Return how many positions an item takes in a history: codes, digit, separator and action.

        Args:
            levels: of a Semantic ID, the digit included; 1 for a network over items.
        """
        return levels + (self.separators and not self.over_items) + self.actions

    @property
    def has_item_rows(self) -> bool:
        """Return whether a network over Semantic IDs has a learned row per item, for the head of actions."""
        return self.actions and self.item_rows and not self.over_items

    @property
    def wants_times(self) -> bool:
        """Return whether the network reads the times of a history's items."""
        return self.name in WITH_HSTU and self.hstu_attention == "silu" and self.time_bias
