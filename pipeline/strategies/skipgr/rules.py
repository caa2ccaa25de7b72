"""These rules decide what skipgr (strategy.py) skips in an epoch, from the scores that earlier epochs left.

The decisions are pure functions of (scores, seed, epoch): one process and many decide alike, and so does a resumed run.
NumPy makes them on the host, so that all sizes are known before a step begins.

Shape legend: N items of histories, L levels; local: M interactions of the splits, flat, R interactions that have a
score, E levels that are scored, U sequences (users, or the windows of single targets), n any of these.
"""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.hashing import Hash, hasher, unit
from pipeline.strategies.base import TrainingPlan
from pipeline.strategies.skipgr.config import SkipgrConfig

UNSCORED = -1.0
# The last part of a hash's key says what a draw is for. TIE, TOKEN and INPUT have the level added to them.
SEQUENCE = 0
TIE = 1
TOKEN = 101
INPUT = 201


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """`Decisions` holds the decisions of one epoch, by flat position of an interaction.

    `thresholds_E`, `mean` and `ratio` are nan where nothing was decided.
    """

    scored_M: np.ndarray  # bool: the interaction has a score
    skip_ML: np.ndarray  # bool: skipped tokens; the digit goes with the last code unless it is scored itself
    sequence_weights_M: np.ndarray  # float32: weight of the window with this target; 0: the sequence is skipped
    thresholds_E: np.ndarray  # the r-quantile of each level's entropies, nats (rule `loss`: of the losses)
    mean: float  # of the sequences' scores
    ratio: float  # Eq. 16's r

    @property
    def decided(self) -> bool:
        """Return True where scores led to a decision, and False where nothing is skipped."""
        return not np.isnan(self.mean)


class Rules:
    """Decide by the parameters of a run which tokens and sequences an epoch skips.

    Args:
        levels: codes of an item, the deduplication digit included.
        digit: the last level is a deduplication digit.
        whole_items: tokens of an item are skipped together or not at all.
    """

    def __init__(
        self, config: SkipgrConfig, plan: TrainingPlan, levels: int, digit: bool = True, whole_items: bool = False
    ):
        self.config = config
        self.plan = plan
        self.levels = levels
        self.whole_items = whole_items
        self.scored_levels = levels - (digit and not config.include_digit)
        self.ratios_E = np.array(config.level_ratios or (config.token_ratio,) * self.scored_levels)
        lengths_U = np.diff(plan.first_U, append=len(plan.items_M))
        self._user_M = np.repeat(np.arange(len(lengths_U)), lengths_U)
        # epochs 10, anneal_epochs 2 -> epochs 8 and 9 skip nothing
        last = int(plan.epochs)
        self.first_annealed = last - config.anneal_epochs if config.anneal_epochs else last + 1

    def skips_in(self, epoch: int) -> bool:
        """Return whether an epoch skips: all but the first ones, which score everything, and the annealed last ones."""
        return self.config.first_skipping_epoch <= epoch < self.first_annealed

    def rescores_in(self, epoch: int) -> bool:
        """Return whether an epoch computes also the target tokens that it skips, to score them anew."""
        return self.skips_in(epoch) and epoch % self.config.rescore_every == 0

    def no_skips(self, scores_ML: np.ndarray) -> Decisions:
        """Return decisions that keep everything."""
        count = len(scores_ML)
        return Decisions(
            scored_M=scores_ML[:, 0] != UNSCORED,
            skip_ML=np.zeros((count, self.levels), bool),
            sequence_weights_M=np.ones(count, np.float32),
            thresholds_E=np.full(self.scored_levels, np.nan),
            mean=np.nan,
            ratio=np.nan,
        )

    def decide(self, scores_ML: np.ndarray, epoch: int) -> Decisions:
        """Return an epoch's decisions from the latest scores, float32, `UNSCORED` where there are none."""
        # Only interactions that have a score are decided about: scores 0.3, -1, 0.1 -> index 0 2
        index_R = np.flatnonzero(scores_ML[:, 0] != UNSCORED)
        if not self.skips_in(epoch) or not len(index_R):
            return self.no_skips(scores_ML)
        # Low scores are skipped: `high_entropy` decides on the negative scores, and reports positive figures.
        scores_RE = self._scores(scores_ML, index_R, epoch)
        skip_RL, thresholds_E = self._tokens(scores_RE, index_R, epoch)
        weights_R, mean, ratio = self._sequences(scores_RE, index_R, epoch)
        # From the scored interactions back to all: the others are never skipped, and weigh 1.
        decisions = self.no_skips(scores_ML)
        self._scatter(skip_RL, index_R, decisions.skip_ML)
        decisions.sequence_weights_M[index_R] = weights_R
        return replace(decisions, thresholds_E=self._sign * thresholds_E, mean=self._sign * mean, ratio=ratio)

    def skips_at_eval(self, scores_ML: np.ndarray, epoch: int) -> np.ndarray:
        """Return bool [M, L]: the tokens that a model with these scores is evaluated without.

        They are skipped also where the epoch skips none.
        """
        index_R = np.flatnonzero(scores_ML[:, 0] != UNSCORED)
        skip_ML = np.zeros((len(scores_ML), self.levels), bool)
        if len(index_R):
            skip_RL, _ = self._tokens(self._scores(scores_ML, index_R, epoch), index_R, epoch)
            self._scatter(skip_RL, index_R, skip_ML)
        return skip_ML

    def skips_of_inputs(self, decisions: Decisions, epoch: int, index_N: np.ndarray, ends_N: np.ndarray) -> np.ndarray:
        """Return bool [N, L]: the skipped tokens of items of histories.

        Args:
            index_N: flat position of each item.
            ends_N: flat position of the target of each item's window.
        """
        if self.config.rule != "random_step":
            skip_NL: np.ndarray = decisions.skip_ML[index_N]
            return skip_NL
        # `random_step` draws for each item in each window anew, hence by target and item.
        mixed_N = hasher(self.plan.seed, epoch, INPUT)(ends_N.astype(np.uint64)) + index_N.astype(np.uint64)
        skip_NE = np.stack(
            [
                unit(hasher(self.plan.seed, epoch, INPUT + 1 + level)(mixed_N)) < ratio
                for level, ratio in enumerate(self.ratios_E)
            ],
            1,
        )
        return self._all_levels(skip_NE & decisions.scored_M[index_N, None])

    # ------------------------------------------------------------------------------------------------ parts

    @property
    def _sign(self) -> float:
        """Return -1 where high scores are skipped, else 1."""
        return -1.0 if self.config.rule == "high_entropy" else 1.0

    def _scores(self, scores_ML: np.ndarray, index_R: np.ndarray, epoch: int) -> np.ndarray:
        """Return the scores that the rule decides by, float64 [R, E]; low ones are skipped."""
        if self.config.rule in ("random", "random_step", "static_random"):
            return np.stack(
                [
                    unit(self._hash(epoch, TOKEN + level)(index_R.astype(np.uint64)))
                    for level in range(self.scored_levels)
                ],
                1,
            )
        # The scores of a level lie side by side, because a level is what is read at once.
        scores_LR = np.take(scores_ML, index_R, 0).T
        return np.stack([self._sign * scores_R.astype(np.float64) for scores_R in scores_LR[: self.scored_levels]]).T

    def _hash(self, epoch: int, purpose: int) -> Hash:
        """Return draws that are new in every epoch; with `static_random` all epochs have the same draws."""
        return hasher(self.plan.seed, 0 if self.config.rule == "static_random" else epoch, purpose)

    def _tokens(self, scores_RE: np.ndarray, index_R: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Apply Eq. 12: return True for the lowest share of each level, [R, L], and the thresholds [E]."""
        skip_RE = np.zeros(scores_RE.shape[::-1], bool).T
        thresholds_E = np.full(self.scored_levels, -np.inf)
        for level, ratio in enumerate(self.ratios_E):
            ties = self._hash(epoch, TIE + level)
            skip_RE[:, level], thresholds_E[level] = lowest(scores_RE[:, level], ratio, index_R, ties)
        return self._all_levels(skip_RE), thresholds_E

    def _all_levels(self, skip_nE: np.ndarray) -> np.ndarray:
        """Add a digit that is not scored, and with `whole_items` skip an item's tokens together or not at all (Eq. 14).

        two scored levels and a digit: 1 0 -> 1 0 0, and 1 1 -> 1 1 1; with whole_items 0 0 0 and 1 1 1
        """
        skip_Ln = skip_nE.T if self.scored_levels == self.levels else np.concatenate([skip_nE.T, skip_nE.T[-1:]])
        return np.broadcast_to(skip_Ln.all(0), skip_Ln.shape).T if self.whole_items else skip_Ln.T

    @staticmethod
    def _scatter(skip_RL: np.ndarray, index_R: np.ndarray, skip_ML: np.ndarray) -> None:
        """Set the skipped tokens of the interactions `index_R` in `skip_ML`, which has none yet."""
        for level, skip_R in enumerate(skip_RL.T):
            skip_ML[index_R[np.flatnonzero(skip_R)], level] = True

    def _sequences(self, scores_RE: np.ndarray, index_R: np.ndarray, epoch: int) -> tuple[np.ndarray, float, float]:
        """Apply Eq. 15 and 16: return the weight of each target's window [R], the mean over sequences, and r."""
        # Eq. 15. The score of an interaction is the mean over its levels, that of a user the mean over interactions.
        # users 0 0 2, scores 0.2 0.4 0.9 -> counts 2 0 1; sequences 0 and 2 with the scores 0.3 and 0.9
        scores_R = np.add.reduce(scores_RE.T) / self.scored_levels
        if self.config.sequence_unit == "user" and self.config.rule != "random_step":
            sequence_R = self._user_M[index_R]
            counts = np.bincount(sequence_R)
            found_U = np.flatnonzero(counts)
            scores_U = np.bincount(sequence_R, scores_R)[found_U] / counts[found_U]
        else:
            # Each target is a sequence, numbered by its flat position.
            sequence_R = index_R
            counts = np.ones(index_R[-1] + 1)
            found_U = index_R
            scores_U = scores_R
        # Eq. 16. A sequence below the mean (0.6: sequence 0) may be skipped: with weight 0 at probability r, else with
        # weight 1 / (1 - r), so that the expected weight is 1.
        mean = mean_without_rounding_up(scores_U)
        below = found_U[scores_U < mean]
        ratio = self._ratio(float(counts[below].sum() / len(index_R)))
        draws = unit(self._hash(epoch, SEQUENCE)(below.astype(np.uint64)))
        weights = np.ones(len(counts), np.float32)
        weights[below] = np.where(draws < ratio, 0.0, 1.0 / (1.0 - ratio))
        return weights[sequence_R], mean, ratio

    def _ratio(self, below: float) -> float:
        """Return Eq. 16's r; with `sequence_share` the r that skips this share of all windows.

        A share of `below` of all windows may be skipped: sequence_share 0.2, below 0.5 -> r 0.4, unless `max_weight`
        limits it.
        """
        if not self.config.sequence_share:
            return self.config.sequence_ratio
        return min(self.config.sequence_share / below, self.config.largest_ratio) if below else 0.0


def lowest(scores_n: np.ndarray, ratio: float, index_n: np.ndarray, ties: Hash) -> tuple[np.ndarray, float]:
    """Return True for the lowest scores, a share of `ratio` of all (rounded to a count), and the highest of them.

    Of equal scores those are chosen whose index has the lower hash.

    scores 3 1 2 1, ratio 0.25 -> one of the two ones, the threshold 1
    """
    count = int(ratio * len(scores_n) + 0.5)
    if count == 0:
        return np.zeros(len(scores_n), bool), -np.inf
    # All scores below the threshold are chosen, and as many that equal it as the count wants.
    threshold = np.partition(scores_n, count - 1)[count - 1]
    chosen_n = scores_n < threshold
    tied = np.flatnonzero(scores_n == threshold)
    order = np.argsort(ties(index_n[tied].astype(np.uint64)), kind="stable")
    chosen_n[tied[order[: count - np.count_nonzero(chosen_n)]]] = True
    return chosen_n, float(threshold)


def mean_without_rounding_up(values_n: np.ndarray) -> float:
    """Return the mean; where all values are equal, exactly that value, so that none of them is below the mean."""
    least = values_n.min()
    return float(least + (values_n - least).mean())
