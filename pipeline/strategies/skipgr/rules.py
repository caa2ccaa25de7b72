"""Who is skipped in a pass: skipgr's decisions (strategy.py), from the scores that earlier passes left.

Pure functions of (scores, seed, pass): the same on one process or many, and after a resume. NumPy, on the host: the
sizes of all that is left are then known before a step begins.

Shape legend: N interactions of the splits, flat, M those of them that have a score, L code levels, E levels that are
scored, U sequences (users, or the windows of single targets), W windows, n any of these.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.hashing import Hash, hasher, unit
from pipeline.strategies.base import TrainingPlan
from pipeline.strategies.skipgr.config import SkipgrConfig

UNSCORED = -1.0
# Last words of the hashes' keys: what a draw is for. Draws about tokens add the level to theirs.
SEQUENCE, TIE, TOKEN, INPUT = 0, 1, 101, 201


@dataclass(frozen=True)
class Decisions:
    """Of one pass, by flat position of an interaction.

    thresholds_E: the r-quantile of each level, nats (`loss`: of the losses); mean: of the sequences' scores; ratio:
    Eq. 16's r. All nan where nothing was decided.
    """

    scored_N: np.ndarray  # bool
    skip_NL: np.ndarray  # bool: tokens; the digit's follows the last code's unless it is scored itself
    sequence_weights_N: np.ndarray  # float32: of the window with this target; 0: the sequence is skipped
    thresholds_E: np.ndarray
    mean: float
    ratio: float

    @property
    def decided(self) -> bool:
        return not np.isnan(self.mean)


class Rules:
    """Decides by the parameters of a run.

    Args:
        levels: codes of an item, the deduplication digit included.
        digit: whether there is one; it is the last.
        whole_items: tokens of an item are skipped together or not at all.
    """

    def __init__(
        self, config: SkipgrConfig, plan: TrainingPlan, levels: int, digit: bool = True, whole_items: bool = False
    ):
        self.config, self.plan, self.levels, self.whole_items = config, plan, levels, whole_items
        self.scored_levels = levels - (digit and not config.include_digit)
        self.ratios_E = np.array(config.level_ratios or (config.token_ratio,) * self.scored_levels)
        lengths_U = np.diff(plan.first_U, append=len(plan.items_N))
        self._user_N = np.repeat(np.arange(len(lengths_U)), lengths_U)
        last = int(plan.epochs)
        self.first_annealed = last - config.anneal_epochs if config.anneal_epochs else last + 1

    def skips_in(self, epoch: int) -> bool:
        """Whether a pass skips: not the first one, which scores everything, nor those at the end."""
        return 0 < epoch < self.first_annealed

    def rescores_in(self, epoch: int) -> bool:
        """Whether tokens that are skipped as targets are computed all the same, to be scored anew."""
        return self.skips_in(epoch) and epoch % self.config.rescore_every == 0

    def no_skips(self, scores_NL: np.ndarray) -> Decisions:
        """Decisions that keep everything."""
        count = len(scores_NL)
        return Decisions(
            scores_NL[:, 0] != UNSCORED,
            np.zeros((count, self.levels), bool),
            np.ones(count, np.float32),
            np.full(self.scored_levels, np.nan),
            np.nan,
            np.nan,
        )

    def decide(self, scores_NL: np.ndarray, epoch: int) -> Decisions:
        """From the latest scores, float32, `UNSCORED` where there are none."""
        index_M = np.flatnonzero(scores_NL[:, 0] != UNSCORED)
        if not self.skips_in(epoch) or not len(index_M):
            return self.no_skips(scores_NL)
        sign, scores_ME = self._sign, self._scores(scores_NL, index_M, epoch)
        skip_ML, thresholds_E = self._tokens(scores_ME, index_M, epoch)
        weights_M, mean, ratio = self._sequences(scores_ME, index_M, epoch)
        decisions = self.no_skips(scores_NL)
        decisions.skip_NL[index_M] = skip_ML
        decisions.sequence_weights_N[index_M] = weights_M
        return Decisions(
            decisions.scored_N, decisions.skip_NL, decisions.sequence_weights_N, sign * thresholds_E, sign * mean, ratio
        )

    def skips_at_eval(self, scores_NL: np.ndarray, epoch: int) -> np.ndarray:
        """bool [N, L]: tokens that a model with these scores is evaluated without, also where the pass skips none."""
        index_M = np.flatnonzero(scores_NL[:, 0] != UNSCORED)
        skip_NL = np.zeros((len(scores_NL), self.levels), bool)
        if len(index_M):
            skip_NL[index_M], _ = self._tokens(self._scores(scores_NL, index_M, epoch), index_M, epoch)
        return skip_NL

    def skips_of_inputs(self, decisions: Decisions, epoch: int, index_N: np.ndarray, ends_N: np.ndarray) -> np.ndarray:
        """bool [n, L]: tokens that are skipped of items of histories; `ends_N` are the targets of their windows."""
        if self.config.rule != "random_step":
            return decisions.skip_NL[index_N]
        mixed_N = hasher(self.plan.seed, epoch, INPUT)(ends_N.astype(np.uint64)) + index_N.astype(np.uint64)
        skip_NE = np.stack(
            [
                unit(hasher(self.plan.seed, epoch, INPUT + 1 + level)(mixed_N)) < ratio
                for level, ratio in enumerate(self.ratios_E)
            ],
            1,
        )
        return self._all_levels(skip_NE & decisions.scored_N[index_N, None])

    # ------------------------------------------------------------------------------------------------ parts

    @property
    def _sign(self) -> float:
        return -1.0 if self.config.rule == "high_entropy" else 1.0

    def _scores(self, scores_NL: np.ndarray, index_M: np.ndarray, epoch: int) -> np.ndarray:
        """What the rule goes by, float64 [M, E]; low ones are skipped."""
        if self.config.rule in ("random", "random_step", "static_random"):
            return np.stack(
                [
                    unit(self._hash(epoch, TOKEN + level)(index_M.astype(np.uint64)))
                    for level in range(self.scored_levels)
                ],
                1,
            )
        return self._sign * scores_NL[index_M, : self.scored_levels].astype(np.float64)

    def _hash(self, epoch: int, purpose: int) -> Hash:
        """New draws in every pass, but for `static_random`."""
        return hasher(self.plan.seed, 0 if self.config.rule == "static_random" else epoch, purpose)

    def _tokens(self, scores_ME: np.ndarray, index_M: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Eq. 12: True for the lowest share of each level, [M, L], and the thresholds."""
        skip_ME, thresholds_E = np.zeros(scores_ME.shape, bool), np.full(self.scored_levels, -np.inf)
        for level, ratio in enumerate(self.ratios_E):
            ties = self._hash(epoch, TIE + level)
            skip_ME[:, level], thresholds_E[level] = lowest(scores_ME[:, level], ratio, index_M, ties)
        return self._all_levels(skip_ME), thresholds_E

    def _all_levels(self, skip_nE: np.ndarray) -> np.ndarray:
        """With the digit, and by whole items where that is asked for (Eq. 14)."""
        skip_nL = skip_nE if self.scored_levels == self.levels else np.concatenate([skip_nE, skip_nE[:, -1:]], 1)
        return np.broadcast_to(skip_nL.all(1, keepdims=True), skip_nL.shape) if self.whole_items else skip_nL

    def _sequences(self, scores_ME: np.ndarray, index_M: np.ndarray, epoch: int) -> tuple[np.ndarray, float, float]:
        """Eq. 15 and 16: the weight of each target's window, the mean over sequences, and r."""
        scores_M = np.add.reduce(scores_ME.T) / self.scored_levels
        if self.config.sequence_unit == "user" and self.config.rule != "random_step":
            of_M = self._user_N[index_M]
            counts_U = np.bincount(of_M)
            found_U = np.flatnonzero(counts_U)
            scores_U = np.bincount(of_M, scores_M)[found_U] / counts_U[found_U]
        else:
            of_M, found_U, scores_U, counts_U = index_M, index_M, scores_M, np.ones(index_M[-1] + 1)
        mean = mean_without_rounding_up(scores_U)
        below_U = found_U[scores_U < mean]
        ratio = self._ratio(float(counts_U[below_U].sum() / len(index_M)))
        draw_U = unit(self._hash(epoch, SEQUENCE)(below_U.astype(np.uint64)))
        weights_U = np.ones(len(counts_U), np.float32)
        weights_U[below_U] = np.where(draw_U < ratio, 0.0, 1.0 / (1.0 - ratio))
        return weights_U[of_M], mean, ratio

    def _ratio(self, below: float) -> float:
        """Eq. 16's r, or that which skips `sequence_share` of the windows when a share of `below` may be skipped."""
        if not self.config.sequence_share:
            return self.config.sequence_ratio
        return min(self.config.sequence_share / below, self.config.largest_ratio) if below else 0.0


def lowest(scores_n: np.ndarray, ratio: float, index_n: np.ndarray, ties: Hash) -> tuple[np.ndarray, float]:
    """True for the nearest count to `ratio` of the lowest scores, and the highest of them; of equal scores those whose
    index has the lower hash.
    """
    count = int(ratio * len(scores_n) + 0.5)
    if count == 0:
        return np.zeros(len(scores_n), bool), -np.inf
    threshold = np.partition(scores_n, count - 1)[count - 1]
    chosen_n = scores_n < threshold
    tied = np.flatnonzero(scores_n == threshold)
    order = np.argsort(ties(index_n[tied].astype(np.uint64)), kind="stable")
    chosen_n[tied[order[: count - np.count_nonzero(chosen_n)]]] = True
    return chosen_n, float(threshold)


def mean_without_rounding_up(values_n: np.ndarray) -> float:
    """The mean; of equal values exactly that value, so that none of them is below it."""
    least = values_n.min()
    return float(least + (values_n - least).mean())
