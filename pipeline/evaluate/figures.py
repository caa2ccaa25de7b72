"""The numbers of an evaluation that follow from the ranks: metrics of each system, intervals, and what each view adds.

Shape legend: U test users, R resamples; local: S views.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from pipeline.evaluate.ranked import FusedRanking
from pipeline.metric_names import BASELINES, DEEP_METRICS, MAIN_METRICS, METRICS
from pipeline.metrics import gains, metrics_within, recall_at, summarise
from pipeline.results.bootstrap import interval, resampled_means

# Systems that have a rank by either rule for seen items, beside the one whose ranks are the headline
SYSTEMS = ("generator", "dense", "fused")


def evaluation_metrics(
    users: pd.DataFrame, drop_seen: bool, invalid_share: float, *, samples: int, seed: int, depth: int = 0
) -> dict[str, float]:
    """Return the metrics that follow from the ranks, by flat names.

    Of DEEP_METRICS there are those whose K is at most `depth`, the length of an exact ranking by either rule for seen
    items.

    Names that begin with `noties_` are over the users whose target shares its timestamp with no earlier interaction;
    they are missing where no target has a tie. `seen_dropped_` and `seen_included_` are the model's by either rule for
    seen items, whichever rule the other names follow (`seen_dropped`: 1 where they follow the first).
    """
    ranks_U = users["rank"].to_numpy()
    deep = metrics_within(depth, DEEP_METRICS)
    metrics: dict[str, float] = {
        **summarise(ranks_U, (*METRICS, *deep)),
        "invalid_rate": invalid_share,
        "users": len(users),
    }
    # A column of gains per metric, resampled together: recall_at_10 -> recall_at_10_low, recall_at_10_high
    drawn = resampled_means(np.stack([gains(name, ranks_U) for name in MAIN_METRICS], axis=1), samples, seed)
    for name, low, high in zip(MAIN_METRICS, *interval(drawn), strict=True):
        metrics |= {f"{name}_low": round(float(low), 6), f"{name}_high": round(float(high), 6)}
    metrics |= {"seen_dropped": int(drop_seen), **_side_metrics(users, drop_seen, METRICS)}
    for name, column in _columns_by_rule(drop_seen).items():
        metrics |= {f"{name}_{metric}": value for metric, value in summarise(users[column].to_numpy(), deep).items()}
    # The same without ties, where only the order of the raw file may say which item came last.
    apart = users[~users["tie"].to_numpy()]
    metrics |= {"tie_share": float(users["tie"].mean()), "noties_users": len(apart)}
    if len(apart) == len(users):
        return metrics
    without_ties = {**summarise(apart["rank"].to_numpy()), **_side_metrics(apart, drop_seen, MAIN_METRICS)}
    return metrics | {f"noties_{name}": value for name, value in without_ties.items()}


def _side_metrics(users: pd.DataFrame, drop_seen: bool, names: Sequence[str]) -> dict[str, float]:
    """Return the baselines' metrics, those of all systems by both rules, and the model's recall of right codes."""
    figures = {"bucket_recall_at_10": recall_at(users["bucket_rank"].to_numpy(), 10)}
    rules = _columns_by_rule(drop_seen)
    columns = {name: f"{name}_rank" for name in BASELINES} | rules
    for system in SYSTEMS:
        if f"{system}_rank" in users:
            columns[system] = f"{system}_rank"
            columns |= {f"{system}_{rule}": f"{system}_{column}" for rule, column in rules.items()}
    if "exact_rank" in users:
        columns["fused_exact"] = "exact_rank"
    for name, column in columns.items():
        summary = summarise(users[column].to_numpy(), names)
        figures |= {f"{name}_{metric}": value for metric, value in summary.items()}
    return figures


def _columns_by_rule(drop_seen: bool) -> dict[str, str]:
    """Return the column of ranks by each rule for seen items; `drop_seen` is the rule that the headline follows."""
    rules = ("seen_dropped", "seen_included")
    return dict(zip(rules if drop_seen else rules[::-1], ("rank", "other_rank"), strict=True))


def fused_figures(users: pd.DataFrame, fused: FusedRanking, *, samples: int, seed: int) -> dict[str, float]:
    """Return what the fusion rests on, what each view adds to it, and its lead over each view alone.

    `fused_gain_of_VIEW_` is the difference to the views without it, with weights of their own; `fused_over_VIEW_` the
    difference to the view alone. Both are paired, user by user, with the 95% interval of resampled users, and follow
    the rule for seen items of the headline.
    """
    figures: dict[str, float] = {"fused_seconds": fused.seconds}
    if fused.exact_U is not None:
        figures["fused_exact_seconds"] = fused.exact_seconds
    weights = fused.weights
    for view in weights.views:
        figures |= {
            f"fused_weight_{view}": weights.weights[view],
            f"fused_temperature_{view}": weights.temperatures[view],
        }
    figures |= {
        "fused_backward_weight": weights.backward,
        "fused_trials": weights.trials,
        "fused_valid_users": weights.valid_users,
        "fused_valid_recall_at_10": weights.valid_recall_at_10,
        "fused_valid_ndcg_at_10": weights.valid_ndcg_at_10,
    }
    ranks_U = users["fused_rank"].to_numpy()
    for number, view in enumerate(weights.views):
        without_U = fused.without_US[:, number]
        figures |= {f"fused_without_{view}_{name}": value for name, value in summarise(without_U, MAIN_METRICS).items()}
        alone_U = {"generator": fused.generator_U, "counting": fused.counting_U}.get(view)
        alone_U = users[f"{view}_rank"].to_numpy() if alone_U is None else alone_U
        for words, others_U in ((f"fused_gain_of_{view}", without_U), (f"fused_over_{view}", alone_U)):
            figures |= _paired(words, ranks_U, others_U, samples, seed)
    return figures


def _paired(words: str, ranks_U: np.ndarray, others_U: np.ndarray, samples: int, seed: int) -> Mapping[str, float]:
    """Return the difference of the main metrics of two systems over the same users, with intervals."""
    differences_UM = np.stack([gains(name, ranks_U) - gains(name, others_U) for name in MAIN_METRICS], axis=1)
    found: dict[str, float] = {}
    drawn = resampled_means(differences_UM, samples, seed)
    for name, mean, low, high in zip(MAIN_METRICS, differences_UM.mean(0), *interval(drawn), strict=True):
        found |= {
            f"{words}_{name}": round(float(mean), 6),
            f"{words}_{name}_low": round(float(low), 6),
            f"{words}_{name}_high": round(float(high), 6),
        }
    return found
