"""What a strategy may change about training, and what happens where it changes nothing.

The trainer calls every method below; a strategy overrides the few that make its difference. It knows nothing of files,
devices, processes or schedules.

Shape legend: W windows, L code levels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones import build_backbone

if TYPE_CHECKING:
    from pipeline.backbones.catalogue import Catalogue
    from pipeline.backbones.config import BackboneConfig
    from pipeline.backbones.histories import Distinct, Histories

# (starts_W, ends_W) of windows, flat positions in the splits -> float32 weights_W; 0 skips the window altogether.
Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Batch:
    """Windows that go through the model together; all rows in the packed order of `histories`.

    Where the histories have `all_targets`, codes and weights have a row per item instead: of the item that follows it.
    """

    histories: "Histories"
    targets_W: Tensor  # int64: item id of each window's target
    codes_WL: Tensor  # int64: its Semantic ID
    weights_W: Tensor  # float32: factor of each window's loss
    distinct: "Distinct | None" = None  # in training, where the strategy asks for it


class Strategy:
    """Plain training. Subclasses override what they change.

    items: whether a training batch lists its distinct items, and how they are weighed. Over an optimizer step, however
        many parts it was split into, their weights add up to its targets (by which the trainer divides): `each` item of
        the step has the same total weight, or each `occurrence` of an item.
    """

    items: Literal["unlisted", "each", "occurrence"] = "unlisted"

    def build_model(self, config: "BackboneConfig", catalogue: "Catalogue") -> nn.Module:
        """The network to train, on the catalogue's device; a trained one is rebuilt by the same call. Random weights
        follow torch's seed.
        """
        return build_backbone(config, catalogue)

    def start_from(self, model: nn.Module, codebooks: Mapping[str, np.ndarray]) -> None:
        """Called once on a new model, before anything is trained. codebooks: the quantizer's, as data/sids holds them.
        """

    def begin_pass(self, pass_index: int) -> Weigh | None:
        """Called before the first window of a pass is drawn, when every step before it is done (and again when a
        stopped run resumes inside the pass). The answer weighs that pass's windows; None trains on all alike.
        """
        return None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Weighted sum over the batch's windows of the cross-entropy summed over levels (digit included), float32.

        The trainer divides by the windows of the whole optimizer step, however many parts that step was split into.
        """
        loss_W = sum(F.cross_entropy(logits_WK.float(), batch.codes_WL[:, level], reduction="none")
                     for level, logits_WK in enumerate(self.logits(model, batch)))
        return (loss_W * batch.weights_W).sum()

    def logits(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Of every level, [W, codes]."""
        return model(batch.histories, batch.targets_W)

    def tokens_kept(self, items_W: np.ndarray, tokens_per_item: int) -> np.ndarray:
        """Encoder positions, padding not counted, that the last block and the decoder see of windows with these many
        items of history.
        """
        return items_W * tokens_per_item

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors, numbers and text only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
