"""skipgr skips tokens and sequences that the model is already sure of.

Paper: "SkipGR", submission 3069 to ICLR 2026, withdrawn; no code was published. The sequence rule is that of InfoBatch
(Qin et al., ICLR 2024) with entropy instead of the loss; `rule: loss` is InfoBatch's.
Equations: entropy of a level's distribution (9, 11); the lowest-entropy share of each level's tokens is skipped (12),
an item when all its tokens are (14); a sequence whose mean entropy (15) is below the mean over all is skipped with
probability r, and weighs 1 / (1 - r) when it is not (16).
The paper's signs contradict each other, and this is our reading: skip = 1 means skipped, as in Eq. 12, 14 and 16. Eq. 3
has the same indicator, but Eq. 4 multiplies the loss by it, and S holds what has 1: both are read with keep = 1 - skip.
Eq. 13 gives 0 to the top r %, which would skip all but r %: it is read as "the lowest r are skipped". H-bar is the
r-quantile of a level in Eq. 12, but the mean over sequences in Eq. 16. Eq. 15 does not say over which levels it takes
its expectation: it is read as the mean over a sequence's scored tokens.
Different on purpose, or where the paper is silent:
- scores come from the steps of earlier epochs, and decisions are taken before an epoch: no second forward pass, and no
  decision that depends on the loss that it removes;
- an encoder-decoder predicts targets only, so a user's first interaction has no score and is never skipped;
- the deduplication digit is not scored (it is nearly always 0); it goes with the last code;
- what is skipped is not computed: sequences are in no batch, the last tokens of a target in no decoder position, tokens
  of a history in no encoder position. An item that leaves a history altogether leaves as if it had never been there. A
  history that would lose everything keeps its last item;
- under Adam an update does not depend on the scale of the loss: neither `normalise` nor 1 / (1 - r) gives back an
  optimizer step that was skipped, and `equal_steps` retains them;
- a target token that leaves the decoder gets no new score: every `rescore_every` epochs it is computed, outside of the
  loss.
Command: dvc exp run -S strategy=skipgr
Expected on Amazon Beauty with one H200 (presets beauty-fast and skipgr, skipgr.anneal_epochs 14, 15 M windows, mean of
3 seeds): recall@10 0.0833, where full has 0.0845; 198 M tokens trained, where full trains 231 M; 67 s of training,
where full needs 69 s. With anneal_epochs 28 (3 seeds): recall@10 0.0845. Measured: docs/results.md; more in
docs/skipgr.md.

Shape legend: W windows, N items of all histories, L levels; local: M interactions of the splits, flat, U users, S
tokens of one item.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.machine import wait_for
from pipeline.ops.levels import scored_cross_entropies
from pipeline.packing.batch import Batch, Selected
from pipeline.packing.histories import slices
from pipeline.packing.kept import EvalSkips, KeptItems
from pipeline.packing.shape import any_of
from pipeline.strategies.base import EvalRule, NetworkTraits, Report, Sampler, TrainingPlan, Weigh
from pipeline.strategies.skipgr.config import SkipgrConfig
from pipeline.strategies.skipgr.report import SkippingReport
from pipeline.strategies.skipgr.rules import Decisions, Rules
from pipeline.strategies.skipgr.store import Journal, ScoreStore


def skips_items(config: SkipgrConfig, traits: NetworkTraits) -> bool:
    """Return whether only whole items leave a history."""
    return config.input_unit == "item" or traits.whole_items


def eval_rule(config: SkipgrConfig, traits: NetworkTraits) -> EvalRule | None:
    """Return the function that turns skipped tokens into `EvalSkips`; None if a model is evaluated with all tokens."""
    if not (config.at_eval and config.skips_inputs):
        return None
    return lambda skip_ML: EvalSkips(skip_ML, skips_items(config, traits), traits.separators)


class SkippingSampler(Sampler):
    """Skip tokens and sequences of low entropy, by the scores that earlier epochs left.

    `begin_epoch` takes an epoch's decisions, and all other methods read them; before the first epoch nothing is
    decided.
    """

    def __init__(self, config: SkipgrConfig, plan: TrainingPlan, traits: NetworkTraits):
        self.config = config
        self.plan = plan
        self.traits = traits
        self.levels = len(traits.widths)
        self.fills_steps = not config.equal_steps
        self.rules = Rules(config, plan, self.levels, traits.digit, traits.whole_items)
        self.store = ScoreStore(len(plan.items_M), self.levels, plan.device, plan.sum)
        self.journal = Journal(plan, traits.widths[: self.rules.scored_levels], self.levels)
        self.epoch = -1  # the epoch that the decisions are for
        self.snapshot_ML = self.store.unscored()  # float32: the scores that the epoch's decisions were taken from
        self._take(self.rules.no_skips(self.snapshot_ML), rescores=False)

    # ------------------------------------------------------------------------------------------------ before an epoch

    def begin_epoch(self, epoch: int) -> Weigh:
        """Take an epoch's decisions from the scores as they are; a resumed epoch decides by the scores of its start."""
        wait_for(self.plan.device)  # the GPU's unfinished steps must not count as bookkeeping
        began = time.perf_counter()
        resumed = self.epoch == epoch
        if not resumed:
            self.snapshot_ML = self.store.merge()
            self.epoch = epoch
        self._take(self.rules.decide(self.snapshot_ML, epoch), self.rules.rescores_in(epoch))
        if not resumed:
            self.journal.begin_epoch(epoch, self.snapshot_ML, self.decisions, self.rescores)
        self.journal.seconds += time.perf_counter() - began
        return lambda _, ends_W: self.weights_M[ends_W]

    def _take(self, decisions: Decisions, rescores: bool) -> None:
        """Set the decisions of an epoch, and the weight of each target's window that follows from them."""
        self.decisions = decisions
        self.rescores = rescores
        # An item whose tokens are all skipped is no target, and its window is in no batch.
        self.weights_M = decisions.sequence_weights_M.copy()
        if self.config.skips_targets and not rescores and not self.plan.all_targets:
            self.weights_M[~any_of(~decisions.skip_ML)] = 0  # Eq. 14

    # ------------------------------------------------------------------------------------------------ before a step

    def select(self, epoch: int, starts_W: np.ndarray, ends_W: np.ndarray) -> Selected:
        """Return what the step computes and counts of its windows, by the epoch's decisions."""
        if self.plan.all_targets:
            return self._select_of_all(starts_W, ends_W)
        counted_WL = np.ones((len(ends_W), self.levels), bool)
        decoded_W = None
        if self.config.skips_targets:
            counted_WL = ~self.decisions.skip_ML[ends_W]
            if self.traits.shortens_targets and not self.rescores:
                # The decoder stops after the last token that counts: counted 1 0 1 0 -> 3 positions; 1 1 1 1 -> 4
                decoded_W = self.levels - np.argmax(counted_WL[:, ::-1], 1)
                decoded_W = decoded_W if (decoded_W < self.levels).any() else None
        kept = (
            self._history(epoch, starts_W, ends_W)
            if self.config.skips_inputs and self.decisions.decided
            else KeptItems(None, None)
        )
        return Selected(
            slots_W=self._slots(starts_W, ends_W),
            counted_WL=counted_WL,
            decoded_W=decoded_W,
            stays_N=kept.stays_N,
            tokens_NS=kept.tokens_NS,
        )

    def _select_of_all(self, starts_W: np.ndarray, ends_W: np.ndarray) -> Selected:
        """Return what `select` says where every item is a target.

        If several windows hold an item, it takes its score from the window that ends with it.
        """
        # The item after each item is its target: window from 3 to 6 -> targets 4 5 6
        lengths_W = ends_W - starts_W
        targets_N = slices(starts_W, lengths_W)[0] + 1
        slots_N = np.repeat(self._slots(starts_W, ends_W), lengths_W)
        if self.plan.each_target_once:
            slots_N = np.where(slots_N == self.store.dummy_slot, slots_N, targets_N)
        else:
            slots_N = np.where(targets_N == np.repeat(ends_W, lengths_W), slots_N, self.store.dummy_slot)
        counted_NL = (
            ~self.decisions.skip_ML[targets_N]
            if self.config.skips_targets
            else np.ones((len(targets_N), self.levels), bool)
        )
        return Selected(slots_W=slots_N, counted_WL=counted_NL, all_targets=True)

    def _slots(self, starts_W: np.ndarray, ends_W: np.ndarray) -> np.ndarray:
        """Return the slot of the store that each window's target writes to, int64 [W].

        If several windows of an epoch have one target, the one with the longest history writes its score; the others
        write to the dummy.
        """
        if self.config.rule == "static_low_entropy" and self.epoch >= self.config.first_skipping_epoch:
            return np.full(len(ends_W), self.store.dummy_slot)
        if self.plan.one_per_target:
            return ends_W
        first_W = self.plan.first_U[np.searchsorted(self.plan.first_U, ends_W, side="right") - 1]
        longest_W = starts_W == np.maximum(first_W, ends_W - self.plan.max_history)
        return np.where(longest_W, ends_W, self.store.dummy_slot)

    def _history(self, epoch: int, starts_W: np.ndarray, ends_W: np.ndarray) -> KeptItems:
        """Return what is kept of the windows' histories."""
        lengths_W = ends_W - starts_W
        index_N, offsets = slices(starts_W, lengths_W)
        skip_NL = self.rules.skips_of_inputs(self.decisions, epoch, index_N, np.repeat(ends_W, lengths_W))
        return KeptItems.of(skip_NL, offsets, skips_items(self.config, self.traits), self.traits.separators)

    # ------------------------------------------------------------------------------------------------ within a step

    def loss(self, logits: list[Tensor], penalty: Tensor | float, batch: Batch) -> Tensor:
        """Return the loss of `Sampler.loss` over the tokens that count, and store a score for each computed token."""
        if batch.slots_W is None or batch.counted_WL is None:
            return super().loss(logits, penalty, batch)  # validation
        weights_WL = batch.weights_W[:, None] * batch.counted_WL
        total, scores_LW = scored_cross_entropies(
            logits,
            batch.codes_WL,
            weights_WL,
            batch.weights_W.new_zeros(()) + penalty,
            "loss" if self.config.rule == "loss" else "entropy",  # Eq. 11
        )
        # A window of weight 0 only fills the batch: its score is discarded. A window without a decoder position for the
        # level has logits that mean nothing, and no score.
        slots_W = torch.where(batch.weights_W > 0, batch.slots_W, self.store.dummy_slot)
        decoder_positions = batch.histories.decoder_positions
        by_level = [
            slots_W
            if decoder_positions is None
            else torch.where(decoder_positions.has_level(level), slots_W, self.store.dummy_slot)
            for level in range(len(logits))
        ]
        self.store.write(torch.stack(by_level), scores_LW)
        return total

    def divisor(self, windows: int, selected: Selected | None) -> float:
        """Return what the step's loss is divided by.

        `normalise: nominal` divides by the windows of a step of `full`, so that in expectation the gradients of an
        epoch add up to those of `full`; `kept` by Eq. 4's |S|, the target tokens that are left, in items.
        """
        if self.config.normalise == "nominal" or selected is None:
            return self.plan.samples_per_step
        return max(float(selected.counted_WL.sum()), 1.0) / self.levels

    # ------------------------------------------------------------------------------------------------ afterwards

    def end_step(self, weights_W: np.ndarray, encoder_tokens: int, selected: Selected | None) -> None:
        """Add what the step computed to the journal."""
        assert selected is not None
        decoded_W = selected.decoded_W
        self.journal.end_step(
            windows=len(weights_W),
            weight_sum=float(weights_W.sum(dtype=np.float64)),
            encoder_tokens=encoder_tokens,
            decoder_tokens=selected.counted_WL.size if decoded_W is None else int(decoded_W.sum()),
            target_tokens=int(selected.counted_WL.sum()),
        )

    def eval_skips(self) -> EvalSkips | None:
        """Return what `Sampler.eval_skips` says.

        An interaction without a score, such as a held-out one, is never skipped. `random_step` draws once, as `random`
        does.
        """
        rule = eval_rule(self.config, self.traits)
        return rule(self.rules.skips_at_eval(self.store.merge(), self.epoch)) if rule else None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; the keys are those of older checkpoints."""
        return {
            "scores": torch.from_numpy(self.store.merge()),
            "snapshot": torch.from_numpy(self.snapshot_ML),
            "pass_index": self.epoch,
            "seconds": self.journal.seconds,
            "journal": self.journal.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.store.load(state["scores"])
        self.snapshot_ML = state["snapshot"].cpu().numpy()
        self.epoch = state["pass_index"]
        self.journal.seconds = state["seconds"]
        self.journal.load_state_dict(state["journal"])

    @property
    def report(self) -> Report:
        return SkippingReport(self.rules, self.store, self.journal)
