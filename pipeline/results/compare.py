"""Compare ways of training by paired differences, with a two-level bootstrap: is one better, or at least not worse?

Two things vary when an experiment is repeated: the seed and the users. A resample therefore draws seeds and users, both
with replacement, and always the same users for all runs: each user is compared with themselves, and with equal seeds on
both sides each seed with itself. Few seeds say little about their own spread, for which two corrections are needed:
deviations of S seeds are widened by sqrt(S / (S - 1)), and the whole interval by Student's t over the normal quantile,
with Satterthwaite's degrees of freedom. Many users and little spread over seeds leave the interval as it is; it becomes
wide with three seeds that differ more than resampled users do. One seed says nothing about others: its interval covers
users only, and the report says so.

Words: `better` when the lower end of the difference lies above 0; `worse` when the upper end lies below 0, and `worse,
by less than 3%` when the lower end of the relative difference lies above -3%; else `not worse` when that end lies above
-3%; else `unclear`.

Sources: Owen 2007, "The pigeonhole bootstrap", for resampling both sides of a crossed table; Satterthwaite 1946, "An
approximate distribution of estimates of variance components".

Shape legend: S seeds, U users, M metrics, R resamples, X columns of both sides (2 M).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.metric_names import MAIN_METRICS, METRICS
from pipeline.metrics import gains
from pipeline.results.arms import Arm, Match, groups_of
from pipeline.results.bootstrap import LEVEL, interval, resampled_means
from pipeline.results.frontier import Standing, standings
from pipeline.results.predictions import MODEL, Predictions
from pipeline.results.ranks import Ranks

NOT_WORSE = -0.03  # relative difference
DETECTABLE = 1.96 + 0.84  # standard errors: found in 4 of 5 repeats (power 80%) at 5% false alarms, two-sided
# Metrics that are compared on all users, and on those whose target has no tie
ALL_USERS = (*METRICS, "bucket_recall_at_10")
WITHOUT_TIES = MAIN_METRICS


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference compares one metric of an arm with the reference.

    low, high, relative_low, relative_high: ends of 95% intervals. Relative values are None where the reference has too
    few hits. detectable: the smallest true difference that this comparison would have told from 0 in four of five
    repeats.
    """

    metric: str
    reference: float  # mean over seeds and users
    value: float  # the same of the arm
    difference: float
    low: float
    high: float
    relative: float | None
    relative_low: float | None
    relative_high: float | None
    detectable: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """A comparison holds the differences of an arm to its reference; none where it has no reference.

    is_reference: another arm is compared with this one.
    """

    match: Match
    differences: list[Difference]
    is_reference: bool = False

    @property
    def arm(self) -> Arm:
        return self.match.arm

    @property
    def reference(self) -> Arm | None:
        return self.match.reference

    @property
    def paired(self) -> bool:
        """Return whether both sides have the same seeds, so that each seed is compared with itself."""
        return self.reference is not None and self.reference.seeds == self.arm.seeds

    @property
    def one_seed(self) -> bool:
        """Return whether a side has one seed only, so that the interval covers users alone."""
        sides = [self.arm, self.reference] if self.reference else [self.arm]
        return min(len(side.seeds) for side in sides) == 1

    @property
    def other(self) -> str:
        """Return in which settings the two sides differ beside the strategy; empty where in none."""
        if self.match.differ is None:
            return "other settings differ too"
        shown = ", ".join(self.match.differ[:6]) + (", ..." if len(self.match.differ) > 6 else "")
        if not shown:
            return ""
        return f"which differs in {shown}" if self.arm.strategy == "full" else f"differing in {shown} too"


@dataclass(frozen=True)
class Table:
    """A table holds the arms of one protocol: their comparisons and what each took, in the same order."""

    protocol: str
    comparisons: list[Comparison]
    standings: list[Standing]


@dataclass(frozen=True)
class ComparisonReport:
    """A report holds a table per protocol, and lines about runs that were left out."""

    tables: list[Table]
    notes: list[str]


def compare(arguments: Sequence[str] = (), *, samples: int = 2000, seed: int = 0) -> ComparisonReport:
    """Compare runs; see `arms.groups_of` for what an argument may be, and what is compared with what.

    Args:
        samples: resamples behind each interval.
        seed: seed of the resampling; the same arguments and seed give the same numbers.

    Raises:
        UserError: a run cannot be read, or there is only one arm.
    """
    groups, notes = groups_of(arguments)
    tables = []
    for group in groups:
        references = {match.reference.name for match in group.matches if match.reference}
        comparisons = [
            Comparison(
                match,
                differences(match.reference, match.arm, samples=samples, seed=seed) if match.reference else [],
                match.arm.name in references,
            )
            for match in group.matches
        ]
        tables.append(Table(group.protocol, comparisons, standings([match.arm for match in group.matches])))
    return ComparisonReport(tables, notes)


def differences(reference: Arm, arm: Arm, *, samples: int, seed: int) -> list[Difference]:
    """Compare the reported metrics of two arms, on all users and on those whose target has no tie.

    Two arms that predict actions are compared by their AUCs over all users.
    """
    if isinstance(reference.runs[0].ranks, Predictions):
        figures = [*reference.runs[0].ranks.values(MODEL)]
        sides = [np.stack([_values(run.ranks) for run in side.runs]) for side in (reference, arm)]
        return _differences(figures, sides, paired=reference.seeds == arm.seeds, samples=samples, seed=seed)
    apart_U = ~_ranks(reference.runs[0].ranks).users["tie"].to_numpy()
    everyone_U = np.ones_like(apart_U)
    found = []
    for prefix, names, chosen_U in (("", ALL_USERS, everyone_U), ("noties_", WITHOUT_TIES, apart_U)):
        if not chosen_U.any():
            continue
        # Gains [S, U, M] of both sides: a row per run, that is per seed.
        sides = [np.stack([_gains(run.ranks, names)[chosen_U] for run in side.runs]) for side in (reference, arm)]
        named = [prefix + name for name in names]
        found += _differences(named, sides, paired=reference.seeds == arm.seeds, samples=samples, seed=seed)
    return found


def _differences(
    names: Sequence[str], sides: Sequence[np.ndarray], *, paired: bool, samples: int, seed: int
) -> list[Difference]:
    """Return a difference for each metric, from the values [S, U, M] of the reference and of the arm."""
    reference_RM, change_RM = two_level(*sides, paired=paired, samples=samples, seed=seed)
    means = [side.mean((0, 1)) for side in sides]
    return [
        _difference(name, means[0][m], means[1][m], reference_RM[:, m], change_RM[:, m]) for m, name in enumerate(names)
    ]


def _values(tested: Ranks | Predictions) -> np.ndarray:
    """Return each user's values of the AUCs of predicted actions, float64 [U, M]."""
    assert isinstance(tested, Predictions)
    return np.stack([*tested.values(MODEL).values()], axis=1)


def _ranks(tested: Ranks | Predictions) -> Ranks:
    assert isinstance(tested, Ranks)
    return tested


def two_level(
    reference_SUM: np.ndarray, other_SUM: np.ndarray, *, paired: bool, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resample the reference's means, and the differences of the other side's means to them; [R, M] each.

    Args:
        reference_SUM: gains of each seed and user.
        other_SUM: the same of the other side.
        paired: row s of both sides has the same seed.
    """
    # 1. Users: resample the means over seeds, the same users on both sides. change_RM is other minus reference.
    metrics = reference_SUM.shape[2]
    users_RX = resampled_means(np.concatenate([reference_SUM.mean(0), other_SUM.mean(0)], axis=1), samples, seed)
    reference_RM = users_RX[:, :metrics]
    change_RM = users_RX[:, metrics:] - reference_RM
    # 2. Seeds: how far each resample of seeds moves the difference, with the number of seeds behind it. Paired, one
    # draw moves both sides; else each side has its draws, and the reference's count with a minus.
    # Differences of 2 seeds .01 .03: drawing the second twice moves their mean .02 by .01, widened by sqrt(2).
    weights_RS = _seed_weights(len(reference_SUM), samples, [seed, 1])
    if paired:
        parts = [(weights_RS @ (other_SUM - reference_SUM).mean(1), len(reference_SUM))]
    else:
        other_RS = _seed_weights(len(other_SUM), samples, [seed, 2])
        parts = [
            (-weights_RS @ reference_SUM.mean(1), len(reference_SUM)),
            (other_RS @ other_SUM.mean(1), len(other_SUM)),
        ]
    # 3. Put both together: the measured difference, and around it users and seeds, widened as few seeds ask for.
    centre_M = other_SUM.mean((0, 1)) - reference_SUM.mean((0, 1))
    spread_RM = change_RM - centre_M + sum(part_RM for part_RM, _ in parts)
    widening_M = _widening(change_RM.var(0), [(part_RM.var(0), seeds - 1) for part_RM, seeds in parts])
    return reference_RM + weights_RS @ reference_SUM.mean(1), centre_M + widening_M * spread_RM


def _widening(users_M: np.ndarray, seeds: list[tuple[np.ndarray, int]]) -> NDArray[np.float64]:
    """Return Student's t over the normal quantile, [M].

    3 seeds (2 degrees of freedom) and no spread over users -> 4.30 / 1.96 = 2.20; no spread over seeds -> 1

    Args:
        users_M: variance of the difference by resampling users; users are many, so its degrees of freedom are infinite.
        seeds: (variance [M], degrees of freedom) by resampling the seeds of each side; one seed (0 degrees) adds none.
    """
    # Satterthwaite: the sum of variances v has (sum v)^2 / sum(v^2 / degrees) degrees of freedom.
    known = [(variance_M, degrees) for variance_M, degrees in seeds if degrees]
    total_M = users_M + sum(variance_M for variance_M, _ in known)
    doubt_M = sum((variance_M**2 / degrees for variance_M, degrees in known), np.zeros_like(users_M))
    degrees_M = np.divide(total_M**2, doubt_M, out=np.full_like(total_M, np.inf), where=doubt_M > 0)
    widening_M: NDArray[np.float64] = stats.t.ppf((1 + LEVEL) / 2, degrees_M) / stats.norm.ppf((1 + LEVEL) / 2)
    return widening_M


def _seed_weights(seeds: int, samples: int, seed: list[int]) -> NDArray[np.float64]:
    """Return weights [R, S] of the seeds: they sum to 0, and say how far each resample of seeds moves their mean.

    2 seeds drawn 0 and 2 times -> -1/2 and 1/2, widened by sqrt(2 / 1)
    """
    if seeds == 1:
        return np.zeros((samples, 1))
    drawn_RS = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=samples)
    weights_RS: NDArray[np.float64] = (drawn_RS - 1) / seeds * np.sqrt(seeds / (seeds - 1))
    return weights_RS


def _gains(tested: Ranks | Predictions, names: Sequence[str]) -> np.ndarray:
    """Return each user's gains of these metrics, float64 [U, M]; `bucket_` metrics are by the bucket's rank."""
    columns = [
        ("bucket_rank", name.removeprefix("bucket_")) if name.startswith("bucket_") else ("rank", name)
        for name in names
    ]
    users = _ranks(tested).users
    return np.stack([gains(metric, users[column].to_numpy()) for column, metric in columns], axis=1)


def _difference(name: str, reference: float, value: float, reference_R: np.ndarray, change_R: np.ndarray) -> Difference:
    """Describe one metric by its means and the resamples of the reference and of the difference, [R] each."""
    low, high = interval(change_R)
    relative = relative_low = relative_high = None
    if reference_R.min() > 0:  # else some resample would divide by 0
        relative = (value - reference) / reference
        relative_low, relative_high = map(float, interval(change_R / reference_R))
    return Difference(
        metric=name,
        reference=float(reference),
        value=float(value),
        difference=float(value - reference),
        low=float(low),
        high=float(high),
        relative=relative,
        relative_low=relative_low,
        relative_high=relative_high,
        detectable=float(DETECTABLE * change_R.std()),
        verdict=verdict(float(low), float(high), relative_low),
    )


def verdict(low: float, high: float, relative_low: float | None) -> str:
    """Return the word for a difference, from the ends of its interval and the lower end of the relative interval."""
    if low > 0:
        return "better"
    little = relative_low is not None and relative_low > NOT_WORSE
    if high < 0:
        return f"worse, by less than {-NOT_WORSE:.0%}" if little else "worse"
    return "not worse" if little else "unclear"
