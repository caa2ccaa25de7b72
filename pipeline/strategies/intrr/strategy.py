"""intrr makes one token of each item, and decodes it, by a small recursive network.

Paper: Wang, Xu, Deng, Yan, Liu, Chu, "IntRR: A Framework for Integrating SID Redistribution and Length Reduction",
2026.
Equations: the recursive assignment network (4 to 6), item vectors (7) and alignment (8) are in network.py; the
backbone's state of the last item (9) and the loss of the target's codes (10) in model.py; their sum (11) is here.
Different on purpose:
- both losses are means of sums over levels: L_rec over targets, L_aln over items. With the paper's raw sums, the weight
  of the alignment would change with the size of the data and of a batch;
- the alignment at a level sees the mixtures of the earlier levels, from the pass that made the item's vector, and never
  the true codes;
- a backbone's recency vectors begin at zero, because item vectors begin small and random recency would drown them.
The configuration that the authors ship has a weight of 0 for the alignment (`alignment: 0`), hard codes with the
gradient of the mixture (`mix: straight_through`), a UID table of 512 (`uid_dim: 512`), and counts an item for each time
it occurs (`alignment_items: batch_occurrences`).
Command: dvc exp run -S strategy=intrr
Expected on Amazon Beauty with one H200 (presets beauty-fast and intrr, 15 M windows, mean of 3 seeds): 35 s of
training, recall@10 0.0796; full needs 69 s and has 0.0845. With backbone decoder: 36 s, recall@10 0.0785; full needs
46 s and has 0.0820. Measured: docs/results.md; more in docs/intrr.md.

Shape legend: W windows, I items of the catalogue, L levels.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.errors import UserError
from pipeline.ops.entropy import entropy
from pipeline.packing.backbone import Backbone
from pipeline.packing.batch import Batch
from pipeline.strategies.base import Network
from pipeline.strategies.intrr.config import IntrrConfig
from pipeline.strategies.intrr.model import CHUNK, RecursiveModel

UNIFORM = 0.98  # of the largest entropy: a mixture that says next to nothing


class RecursiveNetwork(Network):
    """Build and call a `RecursiveModel` instead of the plain backbone."""

    whole_items = True

    def __init__(self, config: IntrrConfig):
        self.config = config
        self.items = "occurrence" if config.alignment_items == "batch_occurrences" else "each"

    def build(self, config: BackboneConfig, catalogue: Catalogue) -> Backbone:
        """Build the `RecursiveModel`.

        Raises:
            UserError: more items share their codes than the deduplication digit has vectors.
        """
        _check_digit(catalogue, self.config.digit_width)
        return RecursiveModel(config, catalogue, self.config).to(catalogue.codes_IL.device)

    def start_from(self, model: nn.Module, codebooks: Mapping[str, np.ndarray]) -> None:
        """Begin at the quantizer's codebooks, and UIDs at their codes, if the settings say so."""
        if self.config.codebooks == "quantizer":
            assert isinstance(model, RecursiveModel)
            model.start_from(codebooks)
        if self.config.uid_start == "codes":
            assert isinstance(model, RecursiveModel)
            model.start_at_codes()

    def logits(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], Tensor | float]:
        """Return the logits of every level, and the weighted alignment: Eq. 11 is their cross-entropy plus the latter.

        Outside of training the alignment is 0, and the loss is that of `full`: the negative log-likelihood of the
        target.
        """
        logits, alignment = model(batch.histories, batch.codes_WL, batch.distinct)
        penalty = self.config.alignment * alignment
        if self.config.uid_norm and self.config.reads_uid and batch.distinct is not None:
            assert isinstance(model, RecursiveModel)
            penalty = penalty + self.config.uid_norm * model.uid_penalty(batch.distinct)
        return logits, penalty

    def remarks(self, model: nn.Module) -> list[str]:
        """Return a line with the entropy of the items' mixtures by level, and one where level 1 is all but uniform."""
        assert isinstance(model, RecursiveModel)
        if self.config.ablation == "no_redistribution":
            return []
        codes_IL = model.catalogue.codes_IL
        sums = np.zeros((2, model.catalogue.levels))
        for items_U in torch.arange(len(codes_IL), device=codes_IL.device).split(CHUNK):
            for level, shares_UV in enumerate(model.code_shares(items_U)):
                own_U = shares_UV.gather(1, codes_IL[items_U, level, None])
                sums[:, level] += [float(entropy(shares_UV.double().clamp(min=1e-300).log()).sum()), float(own_U.sum())]
        entropies_L, shares_L = sums / len(codes_IL)
        largest_L = np.log(model.catalogue.widths)
        by_level = ", ".join(f"{h:.2f} of {most:.2f}" for h, most in zip(entropies_L, largest_L, strict=True))
        own = ", ".join(f"{share:.3f}" for share in shares_L)
        lines = [f"items' mixtures by level: entropy {by_level} nats; share of the true code {own}"]
        if entropies_L[0] > UNIFORM * largest_L[0]:
            lines.append(
                "level 1 of the items' mixtures is all but uniform, so that items look alike there: set "
                "intrr.uid_norm, or a larger intrr.alignment"
            )
        return lines

    def tokens_kept(self, items_W: np.ndarray, input_tokens_per_item: int) -> np.ndarray:
        """Return what `Network.tokens_kept` says: one position per item."""
        return items_W


def _check_digit(catalogue: Catalogue, width: int) -> None:
    """Raise UserError if a digit is `width` or more, and name the items of the largest group of equal codes."""
    digits_I = catalogue.codes_IL[:, -1]
    if not catalogue.digit or not width or int(digits_I.max()) < width:
        return
    group_L = catalogue.codes_IL[digits_I.argmax(), :-1]
    members = torch.nonzero((catalogue.codes_IL[:, :-1] == group_L).all(1)).flatten().tolist()
    names = ", ".join(map(str, members[:5])) + (", ..." if len(members) > 5 else "")
    raise UserError(
        f"intrr.digit_width is {width}, but {len(members)} items share the codes {group_L.tolist()}: item_id {names}",
        "the deduplication digit has a vector for each of them",
        f"set intrr.digit_width to {len(members)} or more (0: as many as needed), or lower the collisions with more "
        "quantize.codes or quantize.levels",
    )
