"""This package holds the backbones: networks over Semantic IDs or items. None knows how items are decoded from it."""

from typing import TYPE_CHECKING

from pipeline.backbones.config import BackboneConfig

if TYPE_CHECKING:
    from pipeline.backbones.sid_tokens import SidBackbone
    from pipeline.catalogue import Catalogue


def build_backbone(config: BackboneConfig, catalogue: "Catalogue", vectors_only: bool = False) -> "SidBackbone":
    """Build the network that `config.name` names, on the catalogue's device.

    Weights are drawn on the CPU from torch's global generator: one seed gives equal weights on every device. This
    function loads torch, so that checking params.yaml does not.

    Args:
        vectors_only: build only what `read` needs: histories of item vectors in, a state for each window out.
    """
    from pipeline.backbones.decoder import Decoder
    from pipeline.backbones.gr import Gr
    from pipeline.backbones.hstu import Hstu
    from pipeline.backbones.sasrec import SasRec
    from pipeline.backbones.t5 import T5

    networks: dict[str, type[T5 | Decoder | Hstu]]
    networks = {"t5": T5, "decoder": Decoder, "hstu": Hstu, "sasrec": SasRec, "gr": Gr}
    return networks[config.name](config, catalogue, vectors_only).to(catalogue.codes_IL.device)
