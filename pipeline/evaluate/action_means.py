"""Predict an action from what the item and the user have had so far: a logistic regression on their two means.

It is what a network over sequences has to beat. A mean is a share of positives in the training part, drawn towards the
share over all exposures; in the fit an exposure does not count in its two means, because it would tell its own label.

Shape legend: X exposures.
"""

from dataclasses import dataclass

import numpy as np

PRIOR = 5.0  # exposures with the common share that stand beside those of an item or a user
ROUNDS = 50  # of Newton's method, which needs about ten
RIDGE = 1e-6  # keeps the weights finite where one class or one item is alone


@dataclass(frozen=True)
class MeanRegression:
    """A fitted regression: share is that of all training exposures; the arrays hold sums of labels and exposures."""

    share: float
    items: np.ndarray  # [2, items]: positives, exposures
    users: np.ndarray  # [2, users]
    weights: np.ndarray  # [3]: constant, item, user

    def chances(self, users_X: np.ndarray, items_X: np.ndarray) -> np.ndarray:
        """Return the chance of the action for each exposure, float64 [X]."""
        items = smoothed(self.items[0, items_X], self.items[1, items_X], self.share)
        users = smoothed(self.users[0, users_X], self.users[1, users_X], self.share)
        return _sigmoid(_features(items, users) @ self.weights)


def fit_means(users_X: np.ndarray, items_X: np.ndarray, labels_X: np.ndarray, users: int, items: int) -> MeanRegression:
    """Fit the regression to training exposures, in the order of anything; `users`, `items`: how many there are."""
    labels_X = labels_X.astype(np.float64)
    share = float(labels_X.mean()) if len(labels_X) else 0.0
    totals = [
        np.stack([np.bincount(ids_X, labels_X, minlength=count), np.bincount(ids_X, minlength=count)])
        for ids_X, count in ((items_X, items), (users_X, users))
    ]
    means = [
        smoothed(positives[ids_X] - labels_X, exposures[ids_X] - 1, share)
        for (positives, exposures), ids_X in zip(totals, (items_X, users_X), strict=True)
    ]
    weights = logistic_weights(_features(*means), labels_X)
    return MeanRegression(share, totals[0], totals[1], weights)


def smoothed(positives_X: np.ndarray, exposures_X: np.ndarray, share: float) -> np.ndarray:
    """Return the share of positives with PRIOR further exposures of the common share."""
    mean: np.ndarray = (positives_X + PRIOR * share) / (exposures_X + PRIOR)
    return mean


def logistic_weights(features_Xd: np.ndarray, labels_X: np.ndarray) -> np.ndarray:
    """Return the weights of the greatest likelihood less RIDGE times half their squares, by Newton's method."""
    weights = np.zeros(features_Xd.shape[1])
    for _ in range(ROUNDS):
        chances_X = _sigmoid(features_Xd @ weights)
        slope = features_Xd.T @ (labels_X - chances_X) - RIDGE * weights
        curve = (features_Xd * (chances_X * (1 - chances_X))[:, None]).T @ features_Xd
        step = np.linalg.solve(curve + RIDGE * np.eye(len(weights)), slope)
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            break
    return weights


def _features(items_X: np.ndarray, users_X: np.ndarray) -> np.ndarray:
    logits = [np.log(mean) - np.log1p(-mean) for mean in (np.clip(m, 1e-6, 1 - 1e-6) for m in (items_X, users_X))]
    return np.stack([np.ones(len(items_X)), *logits], 1)


def _sigmoid(logits_X: np.ndarray) -> np.ndarray:
    chances: np.ndarray = 0.5 * (1 + np.tanh(0.5 * logits_X))
    return chances
