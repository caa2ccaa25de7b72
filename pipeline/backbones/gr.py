"""`Gr` is GR at item level (Zhai et al. 2024, "Actions Speak Louder than Words"): HSTU's layers over items.

The layers, their biases of position and time, and what differs from the authors' research code are in hstu.py; vectors
of items and logits are those of every network over items (item_head.py). As published, the first layer reads vectors
multiplied by the square root of the width, and logits are cosines over a temperature of 0.05 (`backbone.temperature`;
0: dot products). SkipGR's Table 2 compares this network with and without skipping; a token is an item there.
"""

from torch import nn

from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.hstu import Hstu
from pipeline.backbones.item_head import START_STD, ItemBackbone
from pipeline.catalogue import Catalogue


class Gr(ItemBackbone, Hstu):
    """A stack of `decoder_layers` HSTU layers over item vectors.

    Raises:
        ValueError: the catalogue's items are not one code of one level each, or only `read` is wanted.
    """

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, vectors_only: bool = False):
        if vectors_only:
            raise ValueError("gr reads items by their index, not vectors that others made")
        super().__init__(config, catalogue, vectors_only=True)
        self._add_items()
        nn.init.normal_(self.ids.weight, std=START_STD)
        if self.content is not None:
            nn.init.normal_(self.content.weight, std=START_STD)
