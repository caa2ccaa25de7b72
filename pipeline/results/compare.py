"""Is one way of training better than another, or at least not worse? Paired differences with a two-level bootstrap.

Two things vary when an experiment is repeated: the seed and the users. A resample therefore draws seeds and users, both
with replacement, and always the same users for all runs: each user is compared with themselves, and with equal seeds on
both sides each seed with itself. Few seeds say little about their own spread, for which two corrections are needed:
deviations of S seeds are widened by sqrt(S / (S - 1)), and the whole interval by Student's t over the normal quantile,
with Satterthwaite's degrees of freedom. Many users and little spread over seeds leave the interval as it is; three
seeds that differ more than resampled users do make it wide. One seed says nothing about others: its interval covers
users only, and the report says so.

Words: `better` when the lower end of the difference lies above 0; else `not worse` when the lower end of the relative
difference lies above -3%; else `worse` when the upper end lies below 0; else `unclear`.

Sources: Owen 2007, "The pigeonhole bootstrap", for resampling both sides of a crossed table; Satterthwaite 1946, "An
approximate distribution of estimates of variance components".
Shape legend: S seeds, U users, M metrics, R resamples.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from pipeline.metrics import METRICS, gains
from pipeline.results.bootstrap import LEVEL, interval, resampled_means
from pipeline.results.ranks import Ranks
from pipeline.results.runs import Arm, arms_of

NOT_WORSE = -0.03  # relative
DETECTABLE = 1.96 + 0.84  # standard errors: found in 4 of 5 repeats (power 80%) at 5% false alarms, two-sided
ALL_USERS, WITHOUT_TIES = (*METRICS, "bucket_recall_at_10"), ("recall_at_10", "ndcg_at_10")


@dataclass(frozen=True)
class Difference:
    """One metric of an arm against the reference. Relative values are None where the reference has too few hits.

    detectable: the smallest true difference that this comparison would have told from 0 in four of five repeats.
    """

    metric: str
    reference: float
    value: float
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
    """An arm against the reference."""

    reference: Arm
    arm: Arm
    differences: list[Difference]

    @property
    def paired(self) -> bool:
        """Whether both sides have the same seeds, so that each is compared with itself."""
        return self.reference.seeds == self.arm.seeds


def compare(arguments: Sequence[str] = (), *, samples: int = 2000, seed: int = 0) -> list[Comparison]:
    """Compare runs; see `runs.arms_of` for what an argument may be. The first arm is the reference of all others.

    Args:
        samples: resamples behind each interval.
        seed: of the resampling; the same arguments and seed give the same numbers.

    Raises:
        UserError: a run cannot be read, or the runs cannot be compared.
    """
    reference, *others = arms_of(arguments)
    return [Comparison(reference, arm, differences(reference, arm, samples=samples, seed=seed)) for arm in others]


def differences(reference: Arm, arm: Arm, *, samples: int, seed: int) -> list[Difference]:
    """The reported metrics of one arm against another, on all users and on those whose target has no tie."""
    apart_U = ~reference.runs[0].ranks.users["tie"].to_numpy()
    everyone_U = np.ones_like(apart_U)
    found = []
    for prefix, names, chosen_U in (("", ALL_USERS, everyone_U), ("noties_", WITHOUT_TIES, apart_U)):
        if not chosen_U.any():
            continue
        sides = [np.stack([_gains(run.ranks, names)[chosen_U] for run in side.runs]) for side in (reference, arm)]
        reference_RM, change_RM = two_level(*sides, paired=reference.seeds == arm.seeds, samples=samples, seed=seed)
        means = [side.mean((0, 1)) for side in sides]
        found += [
            _difference(prefix + name, means[0][m], means[1][m], reference_RM[:, m], change_RM[:, m])
            for m, name in enumerate(names)
        ]
    return found


def two_level(
    reference_SUM: np.ndarray, other_SUM: np.ndarray, *, paired: bool, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resamples of the reference's means and of the difference to the other side, [R, M] each.

    Args:
        paired: row s of both sides has the same seed.
    """
    metrics = reference_SUM.shape[2]
    users_RV = resampled_means(np.concatenate([reference_SUM.mean(0), other_SUM.mean(0)], axis=1), samples, seed)
    reference_RM, change_RM = users_RV[:, :metrics], users_RV[:, metrics:] - users_RV[:, :metrics]
    weights_RS = _seed_weights(len(reference_SUM), samples, [seed, 1])
    if paired:
        parts = [(weights_RS @ (other_SUM - reference_SUM).mean(1), len(reference_SUM))]
    else:
        other_RS = _seed_weights(len(other_SUM), samples, [seed, 2])
        parts = [
            (-weights_RS @ reference_SUM.mean(1), len(reference_SUM)),
            (other_RS @ other_SUM.mean(1), len(other_SUM)),
        ]
    centre_M = other_SUM.mean((0, 1)) - reference_SUM.mean((0, 1))
    spread_RM = change_RM - centre_M + sum(part_RM for part_RM, _ in parts)
    return (
        reference_RM + weights_RS @ reference_SUM.mean(1),
        centre_M + _widening(change_RM.var(0), [(part.var(0), seeds - 1) for part, seeds in parts]) * spread_RM,
    )


def _widening(users_M: np.ndarray, of_seeds: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Student's t over the normal quantile, [M], for variances of users and (variance, degrees of freedom) of seeds."""
    known = [(variance_M, degrees) for variance_M, degrees in of_seeds if degrees]
    total_M = users_M + sum(variance_M for variance_M, _ in known)
    doubt_M = sum((variance_M**2 / degrees for variance_M, degrees in known), np.zeros_like(users_M))
    degrees_M = np.divide(total_M**2, doubt_M, out=np.full_like(total_M, np.inf), where=doubt_M > 0)
    return stats.t.ppf((1 + LEVEL) / 2, degrees_M) / stats.norm.ppf((1 + LEVEL) / 2)


def _seed_weights(seeds: int, samples: int, seed: list[int]) -> np.ndarray:
    """How far each resample of the seeds moves their mean: weights [R, S] that sum to 0, widened for few seeds."""
    if seeds == 1:
        return np.zeros((samples, 1))
    drawn_RS = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=samples)
    return (drawn_RS - 1) / seeds * np.sqrt(seeds / (seeds - 1))


def _gains(ranks: Ranks, names: Sequence[str]) -> np.ndarray:
    """[U, M]"""
    columns = [
        ("bucket_rank", name.removeprefix("bucket_")) if name.startswith("bucket_") else ("rank", name)
        for name in names
    ]
    return np.stack([gains(metric, ranks.users[column].to_numpy()) for column, metric in columns], axis=1)


def _difference(name: str, reference: float, value: float, reference_R: np.ndarray, change_R: np.ndarray) -> Difference:
    low, high = interval(change_R)
    relative = relative_low = relative_high = None
    if reference_R.min() > 0:
        relative = (value - reference) / reference
        relative_low, relative_high = map(float, interval(change_R / reference_R))
    return Difference(
        name,
        float(reference),
        float(value),
        float(value - reference),
        float(low),
        float(high),
        relative,
        relative_low,
        relative_high,
        float(DETECTABLE * change_R.std()),
        verdict(float(low), float(high), relative_low),
    )


def verdict(low: float, high: float, relative_low: float | None) -> str:
    """The word for an interval of the difference and the lower end of the relative one."""
    if low > 0:
        return "better"
    if relative_low is not None and relative_low > NOT_WORSE:
        return "not worse"
    return "worse" if high < 0 else "unclear"


def comparison_text(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as text: which runs, how they were evaluated, one line per metric."""
    reference = comparisons[0].reference
    origin, users = reference.runs[0].ranks.origin, len(reference.runs[0].ranks.users)
    lines = [
        f"{origin.dataset}: {users:,} users, beam {origin.beam}, {origin.decoding}, seen items "
        f"{'dropped' if origin.filter_seen else 'kept'}; 95% intervals",
        f"reference: {_arm(reference)}",
    ]
    for comparison in comparisons:
        lines += [
            "",
            f"{_arm(comparison.arm)}, {_pairing(comparison)}",
            f"  {'':20}{'reference':>10}{'value':>10}{'difference':>12}{'interval':>20}{'relative':>10}"
            f"{'interval':>18}{'detectable':>12}",
        ]
        lines += [f"  {_line(difference)}" for difference in comparison.differences]
    lines += [
        "",
        "detectable: the smallest true difference that would have been told from 0 in four of five repeats",
        f"better: lower end above 0. not worse: lower end of the relative difference above {NOT_WORSE:.0%}",
    ]
    return "\n".join(lines)


def comparison_rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparisons as plain values, one row per arm and metric."""
    return [
        {
            "reference_arm": comparison.reference.name,
            "arm": comparison.arm.name,
            "reference_seeds": list(comparison.reference.seeds),
            "seeds": list(comparison.arm.seeds),
            "paired": comparison.paired,
            **asdict(difference),
        }
        for comparison in comparisons
        for difference in comparison.differences
    ]


def _arm(arm: Arm) -> str:
    seeds = (
        f"{len(arm.seeds)} seeds ({', '.join(map(str, arm.seeds))})" if len(arm.seeds) > 1 else (f"seed {arm.seeds[0]}")
    )
    return f"{arm.name}, {seeds}"


def _pairing(comparison: Comparison) -> str:
    if min(len(comparison.arm.seeds), len(comparison.reference.seeds)) == 1:
        return "one seed on a side: the intervals do not tell how much another seed would change"
    return "paired by seed" if comparison.paired else "seeds differ, so they are not paired"


def _line(d: Difference) -> str:
    relative = f"{'too few hits':>28}"
    if d.relative is not None:
        relative = f"{d.relative:>+10.1%}{f'{d.relative_low:+.1%} to {d.relative_high:+.1%}':>18}"
    return (
        f"{d.metric:20}{d.reference:>10.4f}{d.value:>10.4f}{d.difference:>+12.4f}"
        f"{f'{d.low:+.4f} to {d.high:+.4f}':>20}{relative}{d.detectable:>12.4f}  {d.verdict}"
    )
