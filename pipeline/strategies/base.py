"""What a strategy may change about training, and what happens where it changes nothing.

The trainer calls every method below; a strategy overrides the few that make its difference. It knows nothing of files,
devices, processes or schedules.

Shape legend: W windows, N items of all histories, S tokens of one item (L codes, then the separator), L code levels,
U users.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones import build_backbone
from pipeline.packing.backbone import Backbone
from pipeline.packing.batch import Batch, Selected

if TYPE_CHECKING:
    from pipeline.backbones.config import BackboneConfig
    from pipeline.catalogue import Catalogue
    from pipeline.packing.kept import EvalSkips

# (starts_W, ends_W) of windows, flat positions in the splits -> float32 weights_W; 0 skips the window altogether.
Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]


Rows = list[dict[str, float | str]]  # of a table; every row has the same keys


@dataclass(frozen=True)
class Course:
    """What a strategy may know of the run that it takes part in."""

    items_N: np.ndarray  # the splits' items; windows are flat positions in it
    first_U: np.ndarray  # each user's first position, and one past the last one for training
    end_U: np.ndarray
    windows: int  # of a pass
    samples_per_step: float  # (history, target) pairs of a step of `full`
    passes: float  # that the run takes
    one_per_target: bool  # whether each window ends at another target; else all those of up to max_history items
    all_targets: bool  # every item of a window but the first is a target too
    once: bool  # and no item is one twice in a pass
    max_history: int
    seed: int
    device: torch.device
    sum: Callable[[Tensor], Tensor]  # over processes, on all of which it must be called


class Strategy:
    """Plain training. Subclasses override what they change.

    items: whether a training batch lists its distinct items, and how they are weighed. Over an optimizer step, however
        many parts it was split into, their weights add up to its targets (by which the trainer divides): `each` item of
        the step has the same total weight, or each `occurrence` of an item.
    """

    items: Literal["unlisted", "each", "occurrence"] = "unlisted"
    whole_items = False  # one that gives an item a single token: another strategy may then only leave out whole items
    skips_at_eval = False  # whether a trained model is evaluated without some tokens of the histories; see `unseen`

    def build_model(self, config: "BackboneConfig", catalogue: "Catalogue") -> Backbone:
        """The network to train, on the catalogue's device; a trained one is rebuilt by the same call. Random weights
        follow torch's seed.
        """
        return build_backbone(config, catalogue)

    def start_from(self, model: nn.Module, codebooks: Mapping[str, np.ndarray]) -> None:
        """Called once on a new model, before anything is trained.

        Args:
            codebooks: the quantizer's, as data/sids holds them.
        """

    def begin(self, course: Course) -> None:
        """Called once the network is there, before a stopped run's state comes back."""

    def begin_pass(self, pass_index: int) -> Weigh | None:
        """Called before the first window of a pass is drawn, when every step before it is done (and again when a
        stopped run resumes inside the pass). The answer weighs that pass's windows; None trains on all alike.
        """
        return None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Weighted sum over the batch's windows of the cross-entropy summed over levels (digit included), float32.

        The trainer divides by `divisor` of the whole optimizer step, however many parts that step was split into.
        """
        logits, penalty = self.logits(model, batch)
        loss_W = sum(
            F.cross_entropy(logits_WK.float(), batch.codes_WL[:, level], reduction="none")
            for level, logits_WK in enumerate(logits)
        )
        return (loss_W * batch.weights_W).sum() + penalty

    def logits(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], Tensor | float]:
        """Of every level, [W, codes]; those of positions that `batch.histories.prefixes` leave out mean nothing. And
        what the batch adds to the loss, beside the cross-entropy.
        """
        return model(batch.histories, batch.targets_W), 0.0

    def divisor(self, windows: int, selected: Selected | None) -> float:
        """What a step's loss, summed over all parts and processes, is divided by; `windows` are in the step (or
        targets, where every item is one).
        """
        return windows

    def select(self, pass_index: int, starts_W: np.ndarray, ends_W: np.ndarray) -> Selected | None:
        """What is computed of the windows of a step (those of weight 0 are not among them); None: everything. May be
        asked for a step ahead of the one that is trained, within the pass.
        """
        return None

    def end_step(self, weights_W: np.ndarray, encoder_tokens: int, selected: Selected | None) -> None:
        """Called after each optimizer step with the weights of its windows, the tokens of them that entered the
        encoder, and what `select` said.
        """

    def tokens_kept(self, items_W: np.ndarray, tokens_per_item: int) -> np.ndarray:
        """Encoder positions, padding not counted, that the last block and the decoder see of windows with these many
        items of history.
        """
        return items_W * tokens_per_item

    def unseen(self, skip_ML: np.ndarray | None = None) -> "EvalSkips | None":
        """What the model is evaluated without, by what is known now; None: nothing. Called on every process.

        Args:
            skip_ML: what a finished run decided, `EvalSkips.skip_ML`, instead of what is known; then `begin` need not
                have been called.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors, numbers and text only. Called on every process."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""

    def tables(self, passes: int, levels: int) -> dict[str, Rows]:
        """What was skipped, once training is over: `passes`, a row for each, and `by_level`, a row for each level."""
        return {
            "passes": [{"pass": number, "sequences_skipped": 0.0, "tokens_skipped": 0.0} for number in range(passes)],
            "by_level": [{"level": f"level {level + 1}", "skipped": 0.0} for level in range(levels)],
        }

    def learned(self) -> dict[str, np.ndarray]:
        """Arrays by name that belong to the result beside the network."""
        return {}

    def figures(self) -> dict[str, float]:
        """Keys of timings.json of its own; those that are measured stand in `artifacts.MEASURED`."""
        return {}
