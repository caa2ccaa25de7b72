"""The parts of a strategy, and plain training, which is what happens where a strategy changes nothing.

A `Network` says what is trained, a `Sampler` which windows and tokens of a pass are computed and how they count, and a
`Report` what is told of it afterwards. A `Strategy` is a pair of a network and a sampler. No part knows of files,
devices, processes or schedules.

Shape legend: W windows, N items of all histories, M interactions of the splits, S tokens of one item (L codes, then the
separator), L code levels, V codes of one level, U users.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones import build_backbone
from pipeline.backbones.config import WITH_ENCODER, BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.packing.backbone import Backbone
from pipeline.packing.batch import Batch, Selected
from pipeline.packing.kept import EvalSkips

# (starts_W, ends_W) of windows, flat positions in the splits -> float32 weights_W; 0 skips the window altogether.
Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]
TableRows = list[dict[str, float | str]]  # of a table; every row has the same keys
EvalRule = Callable[[np.ndarray], EvalSkips]  # skip_ML of a finished run -> what its model is evaluated without


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What a sampler may know of the run that it takes part in."""

    items_N: np.ndarray  # the splits' items; windows are flat positions in it
    first_U: np.ndarray  # each user's first position, and one past the last one for training
    end_U: np.ndarray
    windows: int  # of a pass
    samples_per_step: float  # (history, target) pairs of a step of `full`
    epochs: float  # that the run takes
    one_per_target: bool  # True: one window per target. False: every window of up to max_history items
    all_targets: bool  # every item of a window but the first is a target too
    each_target_once: bool  # each item is a target at most once per pass
    max_history: int
    seed: int
    device: torch.device
    sum: Callable[[Tensor], Tensor]  # over processes, on all of which it must be called


@dataclass(frozen=True, kw_only=True)
class NetworkTraits:
    """What a sampler may know of the network and of the Semantic IDs that it reads."""

    widths: tuple[int, ...]  # codes of each level
    digit: bool  # the last level is the deduplication digit
    separators: bool  # a separator follows the codes of an item
    whole_items: bool  # an item is one token, so that only whole items can leave a history
    shortens_targets: bool  # the last tokens of a target can leave the computation, and not only the loss

    @classmethod
    def of(cls, network: "Network", config: BackboneConfig, catalogue: Catalogue) -> "NetworkTraits":
        """The traits of a network that `network` builds."""
        return cls(
            widths=catalogue.widths,
            digit=catalogue.digit,
            separators=config.separators,
            whole_items=network.whole_items,
            shortens_targets=config.name in WITH_ENCODER and not network.whole_items,
        )


class Network:
    """The backbone as it is. Subclasses override what they change of it.

    items: whether a training batch lists its distinct items, and how they are weighed. Over an optimizer step, however
        many parts it was split into, their weights add up to its targets (by which the trainer divides): `each` item of
        the step has the same total weight, or each `occurrence` of an item.
    """

    items: Literal["unlisted", "each", "occurrence"] = "unlisted"
    whole_items = False  # an item is a single token

    def build(self, config: BackboneConfig, catalogue: Catalogue) -> Backbone:
        """The network to train, on the catalogue's device; a trained one is rebuilt by the same call. Random weights
        follow torch's seed.
        """
        return build_backbone(config, catalogue)

    def start_from(self, model: nn.Module, codebooks: Mapping[str, np.ndarray]) -> None:
        """Prepare a new model, before anything is trained.

        Args:
            codebooks: the quantizer's, as data/sids holds them.
        """

    def logits(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], Tensor | float]:
        """The logits [W, V] of every level, and what the batch adds to the loss beside their cross-entropy. Logits of
        positions that `batch.histories.decoder_positions` leave out mean nothing.
        """
        return model(batch.histories, batch.targets_W), 0.0

    def tokens_kept(self, items_W: np.ndarray, input_tokens_per_item: int) -> np.ndarray:
        """Encoder positions, padding not counted, that the last block and the decoder see of windows with these many
        items of history.
        """
        return items_W * input_tokens_per_item


class Report:
    """What is told of a run where nothing was skipped."""

    def tables(self, epochs: int, levels: int) -> dict[str, TableRows]:
        """What was skipped, once training is over: `passes`, a row for each, and `by_level`, a row for each level."""
        return {
            "passes": [{"pass": number, "sequences_skipped": 0.0, "tokens_skipped": 0.0} for number in range(epochs)],
            "by_level": [{"level": f"level {level + 1}", "skipped": 0.0} for level in range(levels)],
        }

    def learned(self) -> dict[str, np.ndarray]:
        """Arrays by name that belong to the result beside the network. Called on every process."""
        return {}

    def figures(self) -> dict[str, float]:
        """More keys of timings.json; those that are measured stand in `artifacts.MEASURED`."""
        return {}


class Sampler:
    """Every window and every token, all alike. Subclasses override what they change; one is made for each run."""

    def begin_epoch(self, epoch: int) -> Weigh | None:
        """Called before the first window of a pass is drawn, when every step before it is done (and again when a
        stopped run resumes inside the pass). The answer weighs that pass's windows; None trains on all alike.
        """
        return None

    def select(self, epoch: int, starts_W: np.ndarray, ends_W: np.ndarray) -> Selected | None:
        """What is computed of the windows of a step (those of weight 0 are not among them); None: everything. May be
        asked for a step ahead of the one that is trained, within the pass.
        """
        return None

    def loss(self, logits: list[Tensor], penalty: Tensor | float, batch: Batch) -> Tensor:
        """Weighted sum over the batch's windows of the cross-entropy summed over levels (digit included), float32, and
        the penalty.

        The trainer divides by `divisor` of the whole optimizer step, however many parts that step was split into.

        Args:
            logits, penalty: as `Network.logits` gives them.
        """
        loss_W = sum(
            F.cross_entropy(logits_WV.float(), batch.codes_WL[:, level], reduction="none")
            for level, logits_WV in enumerate(logits)
        )
        return (loss_W * batch.weights_W).sum() + penalty

    def divisor(self, windows: int, selected: Selected | None) -> float:
        """What a step's loss, summed over all parts and processes, is divided by; `windows` are in the step (or
        targets, where every item is one).
        """
        return windows

    def end_step(self, weights_W: np.ndarray, encoder_tokens: int, selected: Selected | None) -> None:
        """Called after each optimizer step with the weights of its windows, the tokens of them that entered the
        encoder, and what `select` said.
        """

    def eval_skips(self) -> EvalSkips | None:
        """What the model is evaluated without, by what is known now; None: nothing. Called on every process."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors, numbers and text only. Called on every process."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""

    @property
    def report(self) -> Report:
        """What is told of the run."""
        return Report()


@dataclass(frozen=True)
class Strategy:
    """A network and a sampler, as training sees them together."""

    network: Network
    sampler: Sampler

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch, summed over its windows; see `Sampler.loss`."""
        logits, penalty = self.network.logits(model, batch)
        return self.sampler.loss(logits, penalty, batch)
