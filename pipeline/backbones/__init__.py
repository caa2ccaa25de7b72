"""Backbones: the networks, the packed attention they share, and how items are decoded from them."""

from typing import TYPE_CHECKING, TypeAlias

from pipeline.backbones.config import BackboneConfig

if TYPE_CHECKING:
    from pipeline.backbones.causal import CausalBackbone
    from pipeline.backbones.t5 import T5
    from pipeline.catalogue import Catalogue

    Backbone: TypeAlias = T5 | CausalBackbone


def build_backbone(config: BackboneConfig, catalogue: "Catalogue", vectors_only: bool = False) -> "Backbone":
    """The network that `config.name` names, on the catalogue's device.

    Args:
        vectors_only: build only what `read` needs: histories of item vectors in, a state for each window out.

    Weights are drawn on the CPU from torch's global generator: one seed gives the same ones on every device. torch is
    loaded here, not when params.yaml is checked.
    """
    from pipeline.backbones.decoder import Decoder
    from pipeline.backbones.hstu import Hstu
    from pipeline.backbones.t5 import T5

    if config.name == "t5":
        return T5(config, catalogue, vectors_only).to(catalogue.codes_IL.device)
    causal: dict[str, type[CausalBackbone]] = {"decoder": Decoder, "hstu": Hstu}
    return causal[config.name](config, catalogue, vectors_only).to(catalogue.codes_IL.device)
