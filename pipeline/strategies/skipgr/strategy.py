"""skipgr: tokens and sequences that the model is already sure of are skipped.

Paper: "SkipGR", submission 3069 to ICLR 2026, withdrawn; no code was published. The sequence rule is that of InfoBatch
(Qin et al., ICLR 2024) with entropy in place of the loss; `rule: loss` is InfoBatch's.
Equations: entropy of a level's distribution (9, 11); the lowest-entropy share of each level's tokens is skipped (12),
an item when all its tokens are (14); a sequence whose mean entropy (15) is below the mean over all is skipped with
probability r, and weighs 1 / (1 - r) when it is not (16).
One reading, for the paper's signs contradict each other: skip = 1 means skipped, as in Eq. 12, 14 and 16. Eq. 3 has the
same indicator but Eq. 4 multiplies the loss with it, and S keeps what has 1: both are read with keep = 1 - skip. Eq. 13
gives 0 to the top r %, which would skip all but r %: read as "the lowest r are skipped". H-bar is the r-quantile of a
level in Eq. 12, but the mean over sequences in Eq. 16. Eq. 15 lacks the expectation's layer: the mean over a
sequence's scored tokens.
Different on purpose, or where the paper is silent:
- scores come from the steps of earlier passes and decisions are taken before a pass: no second forward, no decision
  that depends on the loss that it removes;
- an encoder-decoder predicts targets only, so a user's first interaction has no score and is never skipped;
- the deduplication digit is not scored (it is nearly always 0); it goes with the last code;
- skipped is not computed: sequences are in no batch, the last tokens of a target in no decoder position, tokens of a
  history in no encoder position. An item that leaves a history altogether leaves as if it had never been there. A
  history that would lose everything keeps its last item;
- what leaves the decoder has no new score: every `rescore_every` passes it is computed, outside of the loss.
Command: dvc exp run -S strategy=skipgr
Time and score: docs/skipgr.md, and benchmarks/skipgr.py.

Shape legend: W windows, N items of all histories (in the store: interactions), S tokens of one item (L codes, then the
separator), L code levels, V codes of a level.
"""

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.machine import wait_for
from pipeline.ops.entropy import entropy
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
    """Whether only whole items leave a history."""
    return config.input_unit == "item" or traits.whole_items


def eval_rule(config: SkipgrConfig, traits: NetworkTraits) -> EvalRule | None:
    """What makes `EvalSkips` of the tokens that a model is evaluated without; None where it is evaluated with all."""
    if not (config.at_eval and config.skips_inputs):
        return None
    return lambda skip_ML: EvalSkips(skip_ML, skips_items(config, traits), traits.separators)


class SkippingSampler(Sampler):
    """Skips what is certain, by the scores that earlier passes left.

    A pass's decisions are made by `begin_epoch` and read by all that follows in the pass; before the first pass nothing
    is decided.
    """

    def __init__(self, config: SkipgrConfig, plan: TrainingPlan, traits: NetworkTraits):
        self.config, self.plan, self.traits = config, plan, traits
        self.levels = len(traits.widths)
        self.rules = Rules(config, plan, self.levels, traits.digit, traits.whole_items)
        self.store = ScoreStore(len(plan.items_N), self.levels, plan.device, plan.sum)
        self.journal = Journal(plan, traits.widths[: self.rules.scored_levels], self.levels)
        self.epoch = -1  # of the decisions
        self.snapshot = self.store.unscored()  # float32 [N, L]: the scores that the pass's decisions rest on
        self._take(self.rules.no_skips(self.snapshot), rescores=False)

    # ------------------------------------------------------------------------------------------------ before a pass

    def begin_epoch(self, epoch: int) -> Weigh:
        """Decide, from the scores as they are now; when a stopped run resumes, as they were."""
        wait_for(self.plan.device)  # steps that are still at work are no bookkeeping
        began = time.perf_counter()
        resumed = self.epoch == epoch
        if not resumed:
            self.snapshot, self.epoch = self.store.merge(), epoch
        self._take(self.rules.decide(self.snapshot, epoch), self.rules.rescores_in(epoch))
        if not resumed:
            self.journal.begin_epoch(epoch, self.snapshot, self.decisions, self.rescores)
        self.journal.seconds += time.perf_counter() - began
        return lambda starts_W, ends_W: self.weights_N[ends_W]

    def _take(self, decisions: Decisions, rescores: bool) -> None:
        """Hold the decisions of a pass, and the weight of each target's window that follows from them."""
        self.decisions, self.rescores = decisions, rescores
        self.weights_N = decisions.sequence_weights_N.copy()
        if self.config.skips_targets and not rescores and not self.plan.all_targets:
            self.weights_N[~any_of(~decisions.skip_NL)] = 0  # Eq. 14

    # ------------------------------------------------------------------------------------------------ before a step

    def select(self, epoch: int, starts_W: np.ndarray, ends_W: np.ndarray) -> Selected:
        if self.plan.all_targets:
            return self._select_of_all(starts_W, ends_W)
        counted_WL, decoded_W = np.ones((len(ends_W), self.levels), bool), None
        if self.config.skips_targets:
            counted_WL = ~self.decisions.skip_NL[ends_W]
            if self.traits.shortens_targets and not self.rescores:
                decoded_W = self.levels - np.argmax(counted_WL[:, ::-1], 1)
                decoded_W = decoded_W if (decoded_W < self.levels).any() else None
        kept = (
            self._history(epoch, starts_W, ends_W)
            if self.config.skips_inputs and self.decisions.decided
            else KeptItems(None, None)
        )
        return Selected(self._slots(starts_W, ends_W), counted_WL, decoded_W, kept.stays_N, kept.tokens_NS)

    def _select_of_all(self, starts_W: np.ndarray, ends_W: np.ndarray) -> Selected:
        """Where every item is a target. Of one that several windows hold, the score is that of the one it ends."""
        lengths_W = ends_W - starts_W
        targets_N = slices(starts_W, lengths_W)[0] + 1
        slots_N = np.repeat(self._slots(starts_W, ends_W), lengths_W)
        if self.plan.each_target_once:
            slots_N = np.where(slots_N == self.store.dummy_slot, slots_N, targets_N)
        else:
            slots_N = np.where(targets_N == np.repeat(ends_W, lengths_W), slots_N, self.store.dummy_slot)
        counted_NL = (
            ~self.decisions.skip_NL[targets_N]
            if self.config.skips_targets
            else np.ones((len(targets_N), self.levels), bool)
        )
        return Selected(slots_N, counted_NL, all_targets=True)

    def _slots(self, starts_W: np.ndarray, ends_W: np.ndarray) -> np.ndarray:
        """Where scores of each window's target go: one window of each target in a pass has a place."""
        if self.config.rule == "static_low_entropy" and self.epoch > 0:
            return np.full(len(ends_W), self.store.dummy_slot)
        if self.plan.one_per_target:
            return ends_W
        first_W = self.plan.first_U[np.searchsorted(self.plan.first_U, ends_W, side="right") - 1]
        longest_W = starts_W == np.maximum(first_W, ends_W - self.plan.max_history)
        return np.where(longest_W, ends_W, self.store.dummy_slot)

    def _history(self, epoch: int, starts_W: np.ndarray, ends_W: np.ndarray) -> KeptItems:
        """What stays of the histories."""
        lengths_W = ends_W - starts_W
        index_N, offsets = slices(starts_W, lengths_W)
        skip_NL = self.rules.skips_of_inputs(self.decisions, epoch, index_N, np.repeat(ends_W, lengths_W))
        return KeptItems.of(skip_NL, offsets, skips_items(self.config, self.traits), self.traits.separators)

    # ------------------------------------------------------------------------------------------------ within a step

    def loss(self, logits: list[Tensor], penalty: Tensor | float, batch: Batch) -> Tensor:
        """As `Sampler.loss`, over the tokens that count; the scores of all tokens that are computed are kept."""
        if batch.slots_W is None or batch.counted_WL is None:
            return super().loss(logits, penalty, batch)  # validation
        weights_WL = batch.weights_W[:, None] * batch.counted_WL
        slots_W = torch.where(batch.weights_W > 0, batch.slots_W, self.store.dummy_slot)
        decoder_positions = batch.histories.decoder_positions
        total = batch.weights_W.new_zeros(()) + penalty
        for level, logits_WV in enumerate(logits):
            logp_WV = F.log_softmax(logits_WV.float(), 1)
            loss_W = -logp_WV.gather(1, batch.codes_WL[:, level, None])[:, 0]
            total = total + (loss_W * weights_WL[:, level]).sum()
            scored_W = slots_W
            if decoder_positions is not None:
                scored_W = torch.where(decoder_positions.has_level(level), slots_W, self.store.dummy_slot)
            self.store.write(level, scored_W, self._scores(logp_WV.detach(), loss_W.detach()))
        return total

    def _scores(self, logp_WV: Tensor, loss_W: Tensor) -> Tensor:
        """Eq. 11 in nats, or the loss; never below 0, which would mean that there is none."""
        if self.config.rule == "loss":
            return loss_W.clamp(min=0)
        return -(-entropy(logp_WV)).clamp(max=0)  # clamp(min=0) could change the sign of a zero

    def divisor(self, windows: int, selected: Selected | None) -> float:
        """nominal: the windows of a step of `full`, so that a pass adds up to what it does there (in expectation);
        kept: Eq. 4's |S|, the target tokens that are left, in items.
        """
        if self.config.normalise == "nominal" or selected is None:
            return self.plan.samples_per_step
        return max(float(selected.counted_WL.sum()), 1.0) / self.levels

    # ------------------------------------------------------------------------------------------------ afterwards

    def end_step(self, weights_W: np.ndarray, encoder_tokens: int, selected: Selected | None) -> None:
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
        """As `Sampler.eval_skips`. What has no score, as held-out interactions, is never skipped. `random_step` draws
        once, as `random` does.
        """
        rule = eval_rule(self.config, self.traits)
        return rule(self.rules.skips_at_eval(self.store.merge(), self.epoch)) if rule else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "scores": torch.from_numpy(self.store.merge()),
            "snapshot": torch.from_numpy(self.snapshot),
            "pass_index": self.epoch,
            "seconds": self.journal.seconds,
            "journal": self.journal.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.store.load(state["scores"])
        self.snapshot, self.epoch = state["snapshot"].cpu().numpy(), state["pass_index"]
        self.journal.seconds = state["seconds"]
        self.journal.load_state_dict(state["journal"])

    @property
    def report(self) -> Report:
        return SkippingReport(self.rules, self.store, self.journal)
