"""`SasRec` is a causal Transformer over items instead of Semantic IDs: one position per item, and a softmax over items.

Paper: Kang, McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018. What it shares with every network over
items is in item_head.py. Different from the paper on purpose:
- the loss is the cross-entropy over all items or over shared draws, not one sampled negative per target;
- layers, norms and positions are those of `Decoder`: T5's relative bias instead of a learned vector per position.
As in the paper's code, the first layer reads vectors multiplied by the square root of the width. With small matrices at
the start (START_STD, not T5's), what the layers add does not drown the item: a new network looks for items near to
those of the history, and learns from there. Measured: docs/sasrec.md.
"""

from torch import nn

from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.decoder import Decoder
from pipeline.backbones.item_head import START_STD, ItemBackbone
from pipeline.catalogue import Catalogue


class SasRec(ItemBackbone, Decoder):
    """A stack of `decoder_layers` causal blocks over item vectors.

    Raises:
        ValueError: the catalogue's items are not one code of one level each, or only `read` is wanted.
    """

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, vectors_only: bool = False):
        if vectors_only:
            raise ValueError("sasrec reads items by their index, not vectors that others made")
        super().__init__(config, catalogue, vectors_only=True)
        self._add_items()
        for module in self.modules():
            if isinstance(module, (nn.Embedding, nn.Linear)):
                nn.init.normal_(module.weight, std=START_STD)
