"""This module holds the parts of a strategy. The base classes are plain training; a strategy overrides what differs.

A `Network` says what is trained. A `Sampler` says which windows and tokens of an epoch are computed and how they count.
A `Report` says afterwards what was skipped. A `Strategy` is a pair of a network and a sampler. No part reads files
or params.yaml; what a sampler may know of the device, the processes and the length of the run is in its `TrainingPlan`.

Shape legend: W windows, L levels, V codes of one level; local: M interactions of the splits, flat, U users.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbones import build_backbone
from pipeline.backbones.config import WITH_ENCODER, BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.ops.levels import cross_entropies
from pipeline.packing.backbone import Backbone
from pipeline.packing.batch import Batch, Selected
from pipeline.packing.kept import EvalSkips

# (starts_W, ends_W) of windows, flat positions in the splits -> float32 weights_W; 0 skips the window altogether.
Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]
TableRows = list[dict[str, float | str]]  # the rows of a table, all with the same keys
EvalRule = Callable[[np.ndarray], EvalSkips]  # skip_ML of a finished run -> the tokens that its model does not see


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A `TrainingPlan` holds the facts of a run that a sampler may use."""

    items_M: np.ndarray  # the splits' items; windows are flat positions in it
    first_U: np.ndarray  # each user's first flat position
    end_U: np.ndarray  # one past each user's last flat position for training
    windows: int  # of an epoch
    samples_per_step: float  # (history, target) pairs of a step of `full`
    epochs: float  # epochs of the run
    one_per_target: bool  # True: one window per target. False: every window of up to max_history items
    all_targets: bool  # every item of a window but the first is a target too
    each_target_once: bool  # each item is a target at most once per epoch
    max_history: int
    seed: int
    device: torch.device
    sum: Callable[[Tensor], Tensor]  # sums over all processes, each of which must call it


@dataclass(frozen=True, kw_only=True)
class NetworkTraits:
    """`NetworkTraits` hold the facts that a sampler may use of the network and of the Semantic IDs that it reads."""

    widths: tuple[int, ...]  # values of each token of a target: the codes of each level
    digit: bool  # the last level is the deduplication digit
    separators: bool  # a separator follows the codes of an item
    whole_items: bool  # an item is one token, so that only whole items can leave a history
    shortens_targets: bool  # the last tokens of a target can leave the decoder, and not only the loss

    @classmethod
    def of(cls, network: "Network", config: BackboneConfig, catalogue: Catalogue) -> "NetworkTraits":
        """Return the traits of the model that `network` builds."""
        return cls(
            widths=network.target_widths(catalogue),
            digit=network.predicts_items and catalogue.digit,
            separators=config.separators,
            whole_items=network.whole_items,
            shortens_targets=config.name in WITH_ENCODER and not network.whole_items,
        )


class Network:
    """Build and call the plain backbone. A subclass overrides what it changes.

    items: says if a training batch lists its distinct items, and how they are weighed. Over an optimizer step, however
        many parts it was split into, their weights add up to the step's targets (by which the trainer divides): `each`
        item of the step has the same total weight, or each `occurrence` of an item.
    """

    items: Literal["unlisted", "each", "occurrence"] = "unlisted"
    whole_items = False  # an item is a single token
    predicts_items = True  # the tokens of a target are its codes; False: what the user did with it

    def target_widths(self, catalogue: Catalogue) -> tuple[int, ...]:
        """Return how many values each token of a target may take."""
        return catalogue.widths

    def build(self, config: BackboneConfig, catalogue: Catalogue) -> Backbone:
        """Build the network to train, on the catalogue's device; the same call rebuilds a trained one.

        Random weights follow torch's seed.
        """
        return build_backbone(config, catalogue)

    def start_from(self, model: nn.Module, codebooks: Mapping[str, np.ndarray]) -> None:
        """Prepare a new model, before anything is trained.

        Args:
            codebooks: the quantizer's, as data/sids holds them.
        """

    def logits(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], Tensor | float]:
        """Return the logits [W, V] of every level, and a penalty that is added to their cross-entropy.

        The penalty of a network with actions is the cross-entropy of the targets' actions.

        Logits of positions that `batch.histories.decoder_positions` leave out mean nothing.
        """
        sampled = () if batch.sampled is None else (batch.sampled,)
        logits = model(batch.histories, batch.targets_W, *sampled)
        levels = batch.codes_WL.shape[1]
        if len(logits) == levels:
            return logits, 0.0
        return logits[:levels], action_loss(logits[levels:], batch)

    def remarks(self, model: nn.Module) -> list[str]:
        """Return lines about a trained model, in evaluation mode, that its user should know."""
        return []

    def tokens_kept(self, items_W: np.ndarray, input_tokens_per_item: int) -> np.ndarray:
        """Return the encoder positions, padding not counted, that the last block and the decoder see of each window.

        Args:
            items_W: items of each window's history.
        """
        return items_W * input_tokens_per_item


def action_loss(logits: list[Tensor], batch: Batch) -> Tensor | float:
    """Return the weighted sum of the cross-entropies of the targets' actions, over all columns; float32.

    An action counts where a token of its item does, so that a strategy that skips an item skips its action too.

    Args:
        logits: a tensor per column, [W, values of the column].
    """
    if batch.actions_WA is None:  # a history of items without actions
        return 0.0
    weights_W = batch.weights_W
    if batch.counted_WL is not None:
        weights_W = weights_W * batch.counted_WL.any(1)
    return (cross_entropies(logits, batch.actions_WA) * weights_W).sum()


class Report:
    """Report a run where nothing was skipped."""

    def tables(self, epochs: int, levels: int) -> dict[str, TableRows]:
        """Return what was skipped in the whole run: `passes`, a row per epoch, and `by_level`, a row per level."""
        return {
            "passes": [{"pass": number, "sequences_skipped": 0.0, "tokens_skipped": 0.0} for number in range(epochs)],
            "by_level": [{"level": f"level {level + 1}", "skipped": 0.0} for level in range(levels)],
        }

    def learned(self) -> dict[str, np.ndarray]:
        """Return arrays by name that belong to the result beside the network. Every process calls this."""
        return {}

    def figures(self) -> dict[str, float]:
        """Return more keys of timings.json; `metric_names.MEASURED` names those that measure time or memory."""
        return {}

    def remarks(self, by_patience: bool) -> list[str]:
        """Return lines about the finished run that its user should know.

        Args:
            by_patience: patience ended the run before its last epoch.
        """
        return []


class Sampler:
    """Train on every window and every token, all alike. A subclass overrides what it changes; a run has one sampler.

    fills_steps: a step is filled up with further windows where some have weight 0. False: a step has the windows of a
        step of `full` without those, so that there are as many steps as in `full`.
    """

    fills_steps: bool = True

    def begin_epoch(self, epoch: int) -> Weigh | None:
        """Return what weighs the windows of an epoch; None trains on all alike.

        The trainer calls this before it draws the epoch's first window, when every earlier step is done, and again when
        a stopped run resumes inside the epoch.
        """
        return None

    def select(self, epoch: int, starts_W: np.ndarray, ends_W: np.ndarray) -> Selected | None:
        """Return what is computed of the windows of a step; None: everything.

        `starts_W` and `ends_W` hold no windows of weight 0. The trainer may call this for a step while it still trains
        an earlier step of the epoch.
        """
        return None

    def loss(self, logits: list[Tensor], penalty: Tensor | float, batch: Batch) -> Tensor:
        """Return the loss of a batch, float32: the weighted sum of its windows' cross-entropies, and the penalty.

        A window's cross-entropy is summed over levels, digit included. The trainer divides by `divisor` of the whole
        optimizer step, however many parts that step was split into.

        Args:
            logits: as `Network.logits` gives them.
            penalty: likewise.
        """
        return (cross_entropies(logits, batch.codes_WL) * batch.weights_W).sum() + penalty

    def divisor(self, windows: int, selected: Selected | None) -> float:
        """Return the number that a step's loss, summed over all parts and processes, is divided by.

        Args:
            windows: windows of the step, or its targets if every item is a target.
        """
        return windows

    def end_step(self, weights_W: np.ndarray, encoder_tokens: int, selected: Selected | None) -> None:
        """Take note of an optimizer step when it is done.

        Args:
            weights_W: weights of its windows.
            encoder_tokens: tokens of these windows that entered the encoder.
            selected: the answer of `select`.
        """

    def eval_skips(self) -> EvalSkips | None:
        """Return the tokens that the model is evaluated without, by the scores so far; None: it sees all tokens.

        Every process calls this.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers and text only. Every process calls this."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    @property
    def report(self) -> Report:
        """Return the report of the run."""
        return Report()


@dataclass(frozen=True)
class Strategy:
    """A `Strategy` holds a network and a sampler, which training uses together."""

    network: Network
    sampler: Sampler

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch, summed over its windows; see `Sampler.loss`."""
        logits, penalty = self.network.logits(model, batch)
        return self.sampler.loss(logits, penalty, batch)
