"""Turn item vectors into codes: one file per quantizer; `quantizer.Quantizer` is the protocol of all quantizers."""

from typing import TYPE_CHECKING

from pipeline.quantize.config import QuantizeConfig

if TYPE_CHECKING:
    from pipeline.quantize.quantizer import Quantizer


def build_quantizer(config: QuantizeConfig, seed: int) -> "Quantizer":
    """Build the quantizer that `config.method` names; its libraries are loaded now, not when params.yaml is checked."""
    if config.method == "rkmeans":
        from pipeline.quantize.rkmeans import RKMeans

        return RKMeans(
            levels=config.levels,
            codes=config.codes,
            normalize_residuals=config.normalize_residuals,
            iterations=config.iterations,
            restarts=config.restarts,
            points_per_code=config.points_per_code,
            seed=seed,
            device=config.device,
        )
    if config.method == "vqvae":
        from pipeline.quantize.vqvae import VQVAE

        return VQVAE(config, seed)
    from pipeline.quantize.rqvae import RQVAE

    return RQVAE(config, seed)
