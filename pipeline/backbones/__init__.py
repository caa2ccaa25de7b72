"""Backbones: the networks, the packed attention they share, and how items are decoded from them."""

from pipeline.backbones.catalogue import Catalogue
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.t5 import T5

BACKBONES: dict[str, type[T5]] = {"t5": T5}


def build_backbone(config: BackboneConfig, catalogue: Catalogue) -> T5:
    """The network that `config.name` names, freshly initialised from torch's global generator."""
    return BACKBONES[config.name](config, catalogue)
