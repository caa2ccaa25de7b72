"""rastp prunes tokens after an encoder block; the important ones go on (strategy.py names the paper)."""

from typing import TYPE_CHECKING

from pipeline.backbones.config import WITH_ENCODER
from pipeline.strategies.rastp.config import RastpConfig
from pipeline.strategies.spec import ParamsView, StrategySpec

if TYPE_CHECKING:
    from pipeline.strategies.base import Network


def _network(settings: RastpConfig, pad_to: int) -> "Network":
    from pipeline.strategies.rastp.strategy import PrunedNetwork

    return PrunedNetwork(settings, pad_to)


def _check(settings: RastpConfig, params: ParamsView, others: tuple[str, ...]) -> None:
    backbone = params.backbone
    if backbone.name not in WITH_ENCODER:
        raise ValueError(
            f"strategy rastp prunes the tokens of an encoder, and backbone {backbone.name} has "
            f"none: set backbone.name to {' or '.join(WITH_ENCODER)}, or choose another strategy"
        )
    if settings.after_layer > backbone.encoder_layers:
        raise ValueError(
            f"rastp.after_layer is {settings.after_layer}, and backbone.encoder_layers only {backbone.encoder_layers}"
        )
    if settings.counts_padding and params.train.batching != "padded":
        raise ValueError(
            "rastp.base padded and rastp.padded_queries count need padding: set train.batching=padded; for rastp.base "
            "padded alone, rastp.base_length names the positions in packed batches too (30 items of 5 positions: 150)"
        )


SPEC = StrategySpec(
    name="rastp",
    summary="after an encoder block, only the tokens that matter go on",
    settings=RastpConfig,
    network=_network,
    check=_check,
    composes_with=frozenset({"skipgr"}),
)
