"""rastp: after an encoder block, only the tokens that matter go on.

Paper: Zhan, Fu, Lv, Zhang, "RASTP: Representation-Aware Semantic Token Pruning for Generative Recommendation with
Semantic Identifiers", 2025. Code: github.com/Yuzt-zju/RASTP.
Equations: saliency ||h_k||_1 (4) of the block's residual output; centrality S_k (5), the attention mass that token k
receives in that block over heads and queries; importance I_k = S_k ||h_k||_1 (6); the floor(keep x length) tokens of
highest importance go on in temporal order (7, 8), and later blocks and the decoder see those alone.
Different on purpose:
- the length is a window's own: batches are packed, and what a padded batch saves by dropping padding is no gain here;
- kept tokens keep their positions: later blocks take the position bias of the original ones;
- separators do not compete for the budget; one goes when its item has lost all its tokens.
The preset `rastp-released` brings back what the authors' code does: a third of the padded length, padded queries and
dropout noise in the score, no positions after pruning.
Command: dvc exp run -S strategy=rastp
Time and score: docs/rastp.md, and benchmarks/rastp.py.
"""

import numpy as np
import torch

from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.packing.backbone import Backbone
from pipeline.strategies.base import Network
from pipeline.strategies.rastp.config import RastpConfig
from pipeline.strategies.rastp.pruner import Pruner


class PrunedNetwork(Network):
    """A T5 with a `Pruner` between two encoder blocks; with `keep: 1` without one, which is plain training.

    Args:
        pad_to: encoder positions of every window of a padded run, 0 for packed.
    """

    def __init__(self, config: RastpConfig, pad_to: int = 0):
        self.config, self.pad_to = config, pad_to
        self.pruner: Pruner | None = None

    def build(self, config: BackboneConfig, catalogue: Catalogue) -> Backbone:
        model = super().build(config, catalogue)
        if self.config.keep < 1:
            self.pruner = Pruner(self.config, catalogue.levels, config.separators, self.pad_to)
            model.pruner = self.pruner
        return model

    def tokens_kept(self, items_W: np.ndarray, input_tokens_per_item: int) -> np.ndarray:
        if self.pruner is None:
            return super().tokens_kept(items_W, input_tokens_per_item)
        return self.pruner.slots(torch.from_numpy(items_W)).numpy()
