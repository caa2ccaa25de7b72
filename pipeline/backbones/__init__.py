"""Backbones: the networks, the packed attention they share, and how items are decoded from them."""

from pipeline.backbones.catalogue import Catalogue
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.t5 import T5

BACKBONES: dict[str, type[T5]] = {"t5": T5}


def build_backbone(config: BackboneConfig, catalogue: Catalogue) -> T5:
    """The network that `config.name` names, on the catalogue's device.

    Weights are drawn on the CPU from torch's global generator: one seed gives the same ones on every device.
    """
    return BACKBONES[config.name](config, catalogue).to(catalogue.codes_IL.device)
