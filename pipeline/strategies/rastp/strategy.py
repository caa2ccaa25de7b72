"""rastp prunes tokens after an encoder block: only the important ones go on.

Paper: Zhan, Fu, Lv, Zhang, "RASTP: Representation-Aware Semantic Token Pruning for Generative Recommendation with
Semantic Identifiers", 2025. Code: github.com/Yuzt-zju/RASTP.
Equations: saliency ||h_k||_1 (4) of the block's residual output; centrality S_k (5), the attention mass that token k
receives in that block over heads and queries; importance I_k = S_k ||h_k||_1 (6); the floor(keep x length) tokens of
highest importance go on in temporal order (7, 8), and later blocks and the decoder see these tokens alone.
Different on purpose:
- the length in (7) is each window's real length, not the padded one: batches are packed, and what a padded batch saves
  by dropping padding is no gain here;
- later blocks take the position bias of the positions that tokens had before pruning;
- separators do not compete for the budget; a separator leaves when its item has lost all its tokens.
With `base: padded` and `base_length` a packed batch prunes as many tokens of a history as the published rule does.
The preset `rastp-released` does what the authors' code does: a third of the padded length, padded queries and dropout
noise in the score, no positions after pruning.
Command: dvc exp run -S strategy=rastp
Expected on Amazon Beauty with one H200 (presets beauty-fast and rastp, 15 M windows, mean of 3 seeds): 61 s of
training, recall@10 0.0834; full needs 69 s and has 0.0845. On Amazon Sports (1 seed): 67 s of training, recall@10
0.0452, where full has 0.0464. Speed of training at TIGER's shape, 4,096 windows a step: 165,744 windows/s, where full
has 131,462. Measured: docs/results.md; more in docs/rastp.md.

Shape legend: W windows.
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
    """Put a `Pruner` between two encoder blocks of a T5; with `keep: 1` put none, which is plain training.

    Args:
        pad_to: encoder positions of every window of a padded run, 0 for packed.
    """

    def __init__(self, config: RastpConfig, pad_to: int = 0):
        self.config = config
        self.pad_to = pad_to
        self.pruner: Pruner | None = None

    def build(self, config: BackboneConfig, catalogue: Catalogue) -> Backbone:
        """Build what `Network.build` says, and set its pruner."""
        model = super().build(config, catalogue)
        if self.config.keep < 1:
            self.pruner = Pruner(self.config, catalogue.levels, config.separators, self.pad_to)
            model.pruner = self.pruner
        return model

    def tokens_kept(self, items_W: np.ndarray, input_tokens_per_item: int) -> np.ndarray:
        """Return what `Network.tokens_kept` says: the slots that the pruner leaves each window."""
        if self.pruner is None:
            return super().tokens_kept(items_W, input_tokens_per_item)
        return self.pruner.slots(torch.from_numpy(items_W)).numpy()
