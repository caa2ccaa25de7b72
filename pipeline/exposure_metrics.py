"""Measure predicted chances of an action: AUC over the corpus and by user, log loss, calibration.

A figure that needs both classes is absent where there is one class only. Equal scores count half in each AUC, and the
sums are of whole numbers, so that no order of the rows changes a digit.

`user_values` gives each user a value whose mean over users is the figure, so that users can be resampled and two models
be compared user by user, as for a mean of hits.

Shape legend: X exposures, U users.
"""

from typing import NamedTuple

import numpy as np

LEAST = 1e-15  # chances are no nearer to 0 and 1 than this in the log loss, so that it is finite
BINS = 10  # of the calibration error, with equally many exposures each
# Least number of a user's earlier exposures in each group of `by_length`
LENGTHS = (0, 1, 10, 30, 100)


class UserAucs(NamedTuple):
    """The AUC of each user with both classes, float64, and the number of that user's exposures, int64."""

    aucs: np.ndarray
    exposures: np.ndarray


def auc(labels_X: np.ndarray, scores_X: np.ndarray) -> float | None:
    """Return the chance that a positive exposure has a higher score than a negative one; None with one class only."""
    found = user_aucs(np.zeros(len(labels_X), np.int64), labels_X, scores_X)
    return float(found.aucs[0]) if len(found.aucs) else None


def user_aucs(users_X: np.ndarray, labels_X: np.ndarray, scores_X: np.ndarray) -> UserAucs:
    """Return the AUC of each user who has both classes, in the order of users."""
    if not len(users_X):
        return UserAucs(np.zeros(0), np.zeros(0, np.int64))
    order = np.lexsort((scores_X, users_X))
    users_X, scores_X = users_X[order], scores_X[order]
    labels_X = labels_X[order].astype(np.int64)
    new_user = np.diff(users_X, prepend=users_X[0] - 1) != 0
    first_X = np.flatnonzero(new_user)
    count = np.diff(np.append(first_X, len(users_X)))
    # Rank times two: scores .1 .4 .4 .9 -> 2 5 5 8
    starts = np.flatnonzero(new_user | (np.diff(scores_X, prepend=np.nan) != 0))
    sizes = np.diff(np.append(starts, len(users_X)))
    user_start = np.repeat(first_X, count)[starts]
    twice = np.repeat(2 * (starts - user_start) + sizes + 1, sizes)
    positives = np.add.reduceat(labels_X, first_X)
    above = np.add.reduceat(twice * labels_X, first_X) - positives * (positives + 1)
    pairs = 2 * positives * (count - positives)
    both = pairs > 0
    return UserAucs(above[both] / pairs[both], count[both])


def gauc(found: UserAucs) -> float | None:
    """Return the mean of the users' AUCs, each user alike; None without users."""
    return float(found.aucs.mean()) if len(found.aucs) else None


def wgauc(found: UserAucs) -> float | None:
    """Return the mean of the users' AUCs, each weighted by the user's exposures; None without users."""
    return float(np.average(found.aucs, weights=found.exposures)) if len(found.aucs) else None


def log_loss(labels_X: np.ndarray, chances_X: np.ndarray) -> float | None:
    """Return the mean negative log-likelihood in nats; None without exposures."""
    if not len(labels_X):
        return None
    return float(_losses(labels_X, chances_X).mean())


def _losses(labels_X: np.ndarray, chances_X: np.ndarray) -> np.ndarray:
    """Return the negative log-likelihood of each exposure in nats."""
    chances_X = np.clip(np.asarray(chances_X, np.float64), LEAST, 1 - LEAST)
    losses: np.ndarray = -np.where(labels_X, np.log(chances_X), np.log1p(-chances_X))
    return losses


def calibration_ratio(labels_X: np.ndarray, chances_X: np.ndarray) -> float | None:
    """Return predicted over observed positives: above 1 the chances are too high. None without a positive."""
    positives = int(np.sum(labels_X))
    return float(np.sum(chances_X, dtype=np.float64) / positives) if positives else None


def calibration_error(labels_X: np.ndarray, chances_X: np.ndarray) -> float | None:
    """Return the mean distance of mean chance and share of positives, over BINS bins by chance; None without exposures.

    Bins hold equally many exposures, of which the last ones of equal chances may fall into two bins.
    """
    if not len(labels_X):
        return None
    order = np.argsort(chances_X, kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    distances = [abs(float(chances_X[rows].mean()) - float(labels_X[rows].mean())) for rows in bins]
    return float(np.average(distances, weights=[len(rows) for rows in bins]))


def measure(users_X: np.ndarray, labels_X: np.ndarray, chances_X: np.ndarray) -> dict[str, float | int]:
    """Return all figures of these exposures by name, without those that need what is not there."""
    found = user_aucs(users_X, labels_X, chances_X)
    figures = {
        "auc": auc(labels_X, chances_X),
        "gauc": gauc(found),
        "wgauc": wgauc(found),
        "log_loss": log_loss(labels_X, chances_X),
        "calibration": calibration_ratio(labels_X, chances_X),
        "calibration_error": calibration_error(labels_X, chances_X),
        "exposures": len(labels_X),
        "positives": int(np.sum(labels_X)),
        "users": len(np.unique(users_X)),
        "users_with_both": len(found.aucs),
    }
    return {name: value for name, value in figures.items() if value is not None}


def by_length(
    users_X: np.ndarray, labels_X: np.ndarray, chances_X: np.ndarray, lengths_X: np.ndarray
) -> dict[str, dict[str, float | int]]:
    """Return the figures of groups of users by `lengths_X`, the number of the user's earlier exposures.

    The keys are `0`, `1-9`, ...; a group without exposures is absent.
    """
    group_X = np.searchsorted(LENGTHS, lengths_X, side="right") - 1
    ends = [*(start - 1 for start in LENGTHS[1:]), None]
    names = [
        f"{start}+" if end is None else f"{start}-{end}" if end > start else f"{start}"
        for start, end in zip(LENGTHS, ends, strict=True)
    ]
    return {
        name: measure(users_X[rows], labels_X[rows], chances_X[rows])
        for group, name in enumerate(names)
        if (rows := group_X == group).any()
    }


def user_values(users_X: np.ndarray, labels_X: np.ndarray, chances_X: np.ndarray) -> dict[str, np.ndarray]:
    """Return float64 [U] for `auc`, `gauc`, `wgauc` and `log_loss`, of the users in ascending order.

    The mean of the values is the figure, and their spread is that of the figure over resampled users, to first order: a
    value is the figure plus U times what the user adds to it. For `auc` that is the sum of the placements of the user's
    exposures (Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 1997). A figure that needs
    both classes is absent where there is one class only.
    """
    found_U, user_X = np.unique(users_X, return_inverse=True)
    users = len(found_U)
    labels_X = labels_X.astype(bool)

    def values(figure: float, share_U: np.ndarray) -> np.ndarray:
        added: np.ndarray = figure + users * share_U
        return added

    loss_X = _losses(labels_X, chances_X)
    mean = float(loss_X.mean())
    told = {"log_loss": values(mean, np.bincount(user_X, loss_X - mean, minlength=users) / len(loss_X))}
    figure = auc(labels_X, chances_X)
    if figure is None:
        return told
    placed_X = _placements(labels_X, chances_X) - figure
    share_X = placed_X / np.where(labels_X, labels_X.sum(), (~labels_X).sum())
    told["auc"] = values(figure, np.bincount(user_X, share_X, minlength=users))
    of_users = user_aucs(user_X, labels_X, chances_X)
    if len(of_users.aucs):
        positives_U = np.bincount(user_X, labels_X, minlength=users)
        counts_U = np.bincount(user_X, minlength=users)
        both_U = (positives_U > 0) & (positives_U < counts_U)
        for name, weights in (("gauc", np.ones(len(of_users.aucs))), ("wgauc", of_users.exposures)):
            figure = float(np.average(of_users.aucs, weights=weights))
            share_U = np.zeros(users)
            share_U[both_U] = weights * (of_users.aucs - figure) / weights.sum()
            told[name] = values(figure, share_U)
    return told


def _placements(labels_X: np.ndarray, scores_X: np.ndarray) -> np.ndarray:
    """Return for a positive the share of negatives below it, for a negative that of positives above; equals half."""
    found, rank_X = np.unique(scores_X, return_inverse=True)
    positives, negatives = (np.bincount(rank_X, mask, minlength=len(found)) for mask in (labels_X, ~labels_X))
    below = np.cumsum(negatives) - negatives / 2
    above = positives.sum() - np.cumsum(positives) + positives / 2
    placed: np.ndarray = np.where(labels_X, below[rank_X] / negatives.sum(), above[rank_X] / positives.sum())
    return placed
