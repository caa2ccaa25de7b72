"""Recall, NDCG and MRR of next-item ranking, from nothing but the place of the one right item.

Every user has exactly one target, so each metric is the mean over users of a gain that depends on the target's rank
alone. The gains are kept apart from the mean, since bootstrap intervals and breakdowns need them user by user.
Ranks are 1-based; 0 means that the target was not found. Validation, evaluation and comparison all count here.

Shape legend: U users.
"""

import numpy as np

METRICS = ("recall_at_5", "recall_at_10", "ndcg_at_5", "ndcg_at_10", "mrr_at_10")


def recall_gains(ranks_U: np.ndarray, k: int) -> np.ndarray:
    """1 where the target is among the first k, float64 [U]. With one target this is the hit rate too."""
    return _within(ranks_U, k).astype(np.float64)


def ndcg_gains(ranks_U: np.ndarray, k: int) -> np.ndarray:
    """1 / log2(rank + 1) where the target is among the first k, else 0, float64 [U].

    Source: Jaervelin and Kekaelaeinen 2002, with one relevant item, so that the ideal gain is 1.
    """
    return np.where(_within(ranks_U, k), 1.0 / np.log2(np.maximum(ranks_U, 1) + 1.0), 0.0)


def mrr_gains(ranks_U: np.ndarray, k: int) -> np.ndarray:
    """1 / rank where the target is among the first k, else 0, float64 [U]."""
    return np.where(_within(ranks_U, k), 1.0 / np.maximum(ranks_U, 1), 0.0)


def gains(metric: str, ranks_U: np.ndarray) -> np.ndarray:
    """Per-user gains of a metric by its name, such as `ndcg_at_10`, float64 [U]."""
    name, k = metric.rsplit("_at_", 1)
    return {"recall": recall_gains, "ndcg": ndcg_gains, "mrr": mrr_gains}[name](ranks_U, int(k))


def recall_at(ranks_U: np.ndarray, k: int) -> float:
    """Share of users whose target is among the first k."""
    return _mean(recall_gains(ranks_U, k))


def ndcg_at(ranks_U: np.ndarray, k: int) -> float:
    """Mean of `ndcg_gains`."""
    return _mean(ndcg_gains(ranks_U, k))


def summarise(ranks_U: np.ndarray) -> dict[str, float]:
    """All of METRICS over these users; 0 for each when there are no users."""
    return {metric: _mean(gains(metric, ranks_U)) for metric in METRICS}


def _within(ranks_U: np.ndarray, k: int) -> np.ndarray:
    return (ranks_U >= 1) & (ranks_U <= k)


def _mean(gains_U: np.ndarray) -> float:
    return float(gains_U.mean()) if len(gains_U) else 0.0
