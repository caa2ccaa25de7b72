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
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.config import WITH_ENCODER
from pipeline.packing.backbone import Backbone
from pipeline.packing.batch import Batch, Selected
from pipeline.packing.histories import slices
from pipeline.packing.kept import EvalSkips, KeptItems
from pipeline.packing.shape import any_of
from pipeline.strategies.base import Course, Rows, Strategy, Weigh
from pipeline.strategies.config import SkipgrConfig
from pipeline.strategies.skipgr.rules import Decisions, Rules
from pipeline.strategies.skipgr.store import Journal, Store

if TYPE_CHECKING:
    from pipeline.backbones.config import BackboneConfig
    from pipeline.catalogue import Catalogue


def skipgr(config: SkipgrConfig, inner: Strategy) -> Strategy:
    """`inner`, with what is certain skipped; where all ratios are 0, `inner` itself."""
    return Skipgr(config, inner) if config.skips_tokens or config.skips_sequences else inner


class Skipgr(Strategy):
    """Skips around another strategy, which makes the network and its logits."""

    snapshot: np.ndarray  # float32 [N, L]: the scores that the pass's decisions rest on
    decisions: Decisions
    pass_index: int = -1  # of them

    def __init__(self, config: SkipgrConfig, inner: Strategy):
        self.config, self.inner = config, inner
        self.whole_items, self.items = inner.whole_items, inner.items
        self.skips_at_eval = config.at_eval and config.skips_inputs
        self.seconds = 0.0  # spent on decisions

    def build_model(self, config: "BackboneConfig", catalogue: "Catalogue") -> Backbone:
        self.widths, self.levels, self.separators = catalogue.widths, catalogue.levels, config.separators
        self.digit = catalogue.digit
        # Elsewhere a target's last tokens leave the loss alone
        self.shortens = config.name in WITH_ENCODER and not self.whole_items
        return self.inner.build_model(config, catalogue)

    def start_from(self, model: nn.Module, codebooks: Mapping[str, np.ndarray]) -> None:
        self.inner.start_from(model, codebooks)

    def begin(self, course: Course) -> None:
        self.inner.begin(course)
        self.course = course
        self.rules = Rules(self.config, course, self.levels, self.digit, self.whole_items)
        self.store = Store(len(course.items_N), self.levels, course.device, course.sum)
        self.journal = Journal(course, self.widths[: self.rules.scored_levels], self.levels)

    # ------------------------------------------------------------------------------------------------ before a pass

    def begin_pass(self, pass_index: int) -> Weigh:
        """Decide, from the scores as they are now; when a stopped run resumes, as they were."""
        if self.course.device.type == "cuda":
            torch.cuda.synchronize(self.course.device)  # steps that are still at work are no bookkeeping
        began = time.perf_counter()
        resumed = self.pass_index == pass_index
        if not resumed:
            self.snapshot, self.pass_index = self.store.merge(), pass_index
        self.decisions = self.rules.decide(self.snapshot, pass_index)
        self.rescores = self.rules.rescores_in(pass_index)
        self.weights_N = self.decisions.sequence_weights_N.copy()
        if self.config.skips_targets and not self.rescores and not self.course.all_targets:
            self.weights_N[~any_of(~self.decisions.skip_NL)] = 0  # Eq. 14
        if not resumed:
            self.journal.begin_pass(pass_index, self.snapshot, self.decisions, self.rescores)
        self.seconds += time.perf_counter() - began
        return lambda starts_W, ends_W: self.weights_N[ends_W]

    # ------------------------------------------------------------------------------------------------ before a step

    def select(self, pass_index: int, starts_W: np.ndarray, ends_W: np.ndarray) -> Selected:
        if self.course.all_targets:
            return self._select_of_all(starts_W, ends_W)
        counted_WL, decoded_W = np.ones((len(ends_W), self.levels), bool), None
        if self.config.skips_targets:
            counted_WL = ~self.decisions.skip_NL[ends_W]
            if self.shortens and not self.rescores:
                decoded_W = self.levels - np.argmax(counted_WL[:, ::-1], 1)
                decoded_W = decoded_W if (decoded_W < self.levels).any() else None
        kept = (
            self._history(pass_index, starts_W, ends_W)
            if self.config.skips_inputs and self.decisions.decided
            else KeptItems(None, None)
        )
        return Selected(self._slots(starts_W, ends_W), counted_WL, decoded_W, kept.stays_N, kept.tokens_NS)

    def _select_of_all(self, starts_W: np.ndarray, ends_W: np.ndarray) -> Selected:
        """Where every item is a target. Of one that several windows hold, the score is that of the one it ends."""
        lengths_W = ends_W - starts_W
        targets_N = slices(starts_W, lengths_W)[0] + 1
        slots_N = np.repeat(self._slots(starts_W, ends_W), lengths_W)
        if self.course.once:
            slots_N = np.where(slots_N == self.store.nowhere, slots_N, targets_N)
        else:
            slots_N = np.where(targets_N == np.repeat(ends_W, lengths_W), slots_N, self.store.nowhere)
        counted_NL = (
            ~self.decisions.skip_NL[targets_N]
            if self.config.skips_targets
            else np.ones((len(targets_N), self.levels), bool)
        )
        return Selected(slots_N, counted_NL, all_targets=True)

    def _slots(self, starts_W: np.ndarray, ends_W: np.ndarray) -> np.ndarray:
        """Where scores of each window's target go: one window of each target in a pass has a place."""
        if self.config.rule == "static_low_entropy" and self.pass_index > 0:
            return np.full(len(ends_W), self.store.nowhere)
        if self.course.one_per_target:
            return ends_W
        first_W = self.course.first_U[np.searchsorted(self.course.first_U, ends_W, side="right") - 1]
        longest_W = starts_W == np.maximum(first_W, ends_W - self.course.max_history)
        return np.where(longest_W, ends_W, self.store.nowhere)

    def _history(self, pass_index: int, starts_W: np.ndarray, ends_W: np.ndarray) -> KeptItems:
        """What stays of the histories."""
        lengths_W = ends_W - starts_W
        index_N, offsets = slices(starts_W, lengths_W)
        skip_NL = self.rules.skips_of_inputs(self.decisions, pass_index, index_N, np.repeat(ends_W, lengths_W))
        return KeptItems.of(skip_NL, offsets, self._skips_items, self.separators)

    @property
    def _skips_items(self) -> bool:
        """Whether only whole items leave a history."""
        return self.config.input_unit == "item" or self.whole_items

    # ------------------------------------------------------------------------------------------------ within a step

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """As `Strategy.loss`, over the tokens that count; the scores of all tokens that are computed are kept."""
        if batch.slots_W is None or batch.counted_WL is None:
            return self.inner.loss(model, batch)  # validation
        weights_WL = batch.weights_W[:, None] * batch.counted_WL
        slots_W = torch.where(batch.weights_W > 0, batch.slots_W, self.store.nowhere)
        prefixes = batch.histories.prefixes
        logits, penalty = self.logits(model, batch)
        total = batch.weights_W.new_zeros(()) + penalty
        for level, logits_WV in enumerate(logits):
            logp_WV = F.log_softmax(logits_WV.float(), 1)
            loss_W = -logp_WV.gather(1, batch.codes_WL[:, level, None])[:, 0]
            total = total + (loss_W * weights_WL[:, level]).sum()
            scored_W = (
                slots_W if prefixes is None else torch.where(prefixes.has_level(level), slots_W, self.store.nowhere)
            )
            self.store.write(level, scored_W, self._scores(logp_WV.detach(), loss_W.detach()))
        return total

    def logits(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], Tensor | float]:
        return self.inner.logits(model, batch)

    def _scores(self, logp_WV: Tensor, loss_W: Tensor) -> Tensor:
        """Eq. 11 in nats, or the loss; never below 0, which would mean that there is none."""
        if self.config.rule == "loss":
            return loss_W.clamp(min=0)
        return -(logp_WV.exp() * logp_WV).sum(1).clamp(max=0)

    def divisor(self, windows: int, selected: Selected | None) -> float:
        """nominal: the windows of a step of `full`, so that a pass adds up to what it does there (in expectation);
        kept: Eq. 4's |S|, the target tokens that are left, in items.
        """
        if self.config.normalise == "nominal" or selected is None:
            return self.course.samples_per_step
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

    def tokens_kept(self, items_W: np.ndarray, tokens_per_item: int) -> np.ndarray:
        return self.inner.tokens_kept(items_W, tokens_per_item)

    def state_dict(self) -> dict[str, Any]:
        return {
            "scores": torch.from_numpy(self.store.merge()),
            "snapshot": torch.from_numpy(self.snapshot),
            "pass_index": self.pass_index,
            "seconds": self.seconds,
            "journal": self.journal.state_dict(),
            "inner": self.inner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.store.load(state["scores"])
        self.snapshot, self.pass_index = state["snapshot"].cpu().numpy(), state["pass_index"]
        self.seconds = state["seconds"]
        self.journal.load_state_dict(state["journal"])
        self.inner.load_state_dict(state["inner"])

    def tables(self, passes: int, levels: int) -> dict[str, Rows]:
        return self.journal.tables()

    def unseen(self, skip_ML: np.ndarray | None = None) -> EvalSkips | None:
        """As `Strategy.unseen`. What has no score, as held-out interactions, is never skipped. `random_step` draws
        once, as `random` does.
        """
        if not self.skips_at_eval:
            return None
        if skip_ML is None:
            skip_ML = self.rules.skips_at_eval(self.store.merge(), self.pass_index)
        return EvalSkips(skip_ML, self._skips_items, self.separators)

    def learned(self) -> dict[str, np.ndarray]:
        """scores: float32 [N, L] by flat position in the splits, -1 where there is none."""
        return {"scores": self.store.merge()}

    def figures(self) -> dict[str, float]:
        """Shares over the passes that skipped, and what was computed in all."""
        rows = self.journal.rows
        deciding = [row for row in rows if self.rules.skips_in(int(row["pass"]))]
        shares = {
            name: sum(row[name] for row in deciding) / max(len(deciding), 1)
            for name in ("sequences_skipped", "tokens_skipped")
        }
        return {
            **shares,
            "decoder_tokens_trained": sum(row["decoder_tokens"] for row in rows),
            "target_tokens_trained": sum(row["target_tokens"] for row in rows),
            "bookkeeping_seconds": self.seconds,
        }
