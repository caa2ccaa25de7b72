"""intrr makes one token of each item, and decodes it, by a small recursive network (strategy.py names the paper)."""

from typing import TYPE_CHECKING

from pipeline.strategies.intrr.config import IntrrConfig
from pipeline.strategies.spec import ParamsView, StrategySpec

if TYPE_CHECKING:
    from pipeline.strategies.base import Network


def _network(settings: IntrrConfig, pad_to: int) -> "Network":
    from pipeline.strategies.intrr.strategy import RecursiveNetwork

    return RecursiveNetwork(settings)


def _content_key(settings: IntrrConfig) -> str:
    return "intrr.uid_content" if settings.uid_content else ""


def _check(settings: IntrrConfig, params: ParamsView, others: tuple[str, ...]) -> None:
    if params.backbone.over_items:
        raise ValueError(
            f"strategy intrr makes one token of an item's Semantic ID, and backbone {params.backbone.name} reads items "
            "without one: set another backbone.name, or choose another strategy"
        )
    if params.backbone.actions:
        raise ValueError(
            "strategy intrr makes one token of an item, and backbone.actions adds another: set backbone.actions to "
            "false, or choose another strategy"
        )
    if params.train.batching == "padded":
        raise ValueError("strategy intrr has no padded batches: set train.batching=packed")
    if settings.uid_content and params.embed.encoder == "none":
        raise ValueError(
            "intrr.uid_content adds the items' content vectors, and embed.encoder none makes none: set another "
            "embed.encoder, or intrr.uid_content=false"
        )
    if settings.tie_break == "uid" and params.quantize.collisions != "digit":
        raise ValueError(
            "intrr.tie_break uid replaces the logits of the deduplication digit: set "
            "quantize.collisions=digit, or leave intrr.tie_break at digit"
        )


SPEC = StrategySpec(
    name="intrr",
    summary="one token per item, made and decoded by a small recursive network",
    settings=IntrrConfig,
    network=_network,
    check=_check,
    content_key=_content_key,
    composes_with=frozenset({"skipgr"}),
    refuses={"rastp": "intrr gives each item a single token, which leaves rastp nothing to choose from"},
    input_tokens_per_item=1,
)
