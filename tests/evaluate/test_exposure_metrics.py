"""AUC by user, calibration and the regression on means, against scikit-learn and slow loops."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from pipeline.actions import Actions
from pipeline.evaluate.action_means import PRIOR, fit_means, logistic_weights
from pipeline.evaluate.exposures import means_figures
from pipeline.exposure_metrics import (
    auc,
    by_length,
    calibration_error,
    calibration_ratio,
    gauc,
    log_loss,
    measure,
    user_aucs,
    user_values,
    wgauc,
)
from pipeline.exposures import Exposures


def slow_auc(labels: list[int], scores: list[float]) -> float | None:
    pairs = [
        (a, b) for a, x in zip(scores, labels, strict=True) if x for b, y in zip(scores, labels, strict=True) if not y
    ]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs) if pairs else None


rows = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 6)), max_size=40)


@settings(max_examples=80)
@given(rows)
def test_aucs_equal_a_loop_over_pairs_with_ties(given_rows: list[tuple[int, bool, int]]) -> None:
    users = np.array([row[0] for row in given_rows], np.int64)
    labels = np.array([row[1] for row in given_rows], bool)
    scores = np.array([row[2] / 7 for row in given_rows])
    assert auc(labels, scores) == slow_auc(labels.tolist(), scores.tolist())
    expected = [
        (value, int((users == user).sum()))
        for user in sorted(set(users.tolist()))
        if (value := slow_auc(labels[users == user].tolist(), scores[users == user].tolist())) is not None
    ]
    found = user_aucs(users, labels, scores)
    assert list(zip(found.aucs.tolist(), found.exposures.tolist(), strict=True)) == expected
    if expected:
        assert gauc(found) == pytest.approx(sum(value for value, _ in expected) / len(expected))
        weight = sum(count for _, count in expected)
        assert wgauc(found) == pytest.approx(sum(value * count for value, count in expected) / weight)
    else:
        assert gauc(found) is None
        assert wgauc(found) is None


def test_figures_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    chances = rng.random(5000).round(2)
    labels = rng.random(5000) < chances**2
    assert auc(labels, chances) == pytest.approx(roc_auc_score(labels, chances), abs=1e-12)
    assert log_loss(labels, chances) == pytest.approx(sklearn_log_loss(labels, chances), rel=1e-9)
    assert calibration_ratio(labels, chances) == pytest.approx(chances.sum() / labels.sum())
    order = np.random.default_rng(1).permutation(5000)
    assert auc(labels[order], chances[order]) == auc(labels, chances)


def test_the_calibration_error_is_zero_in_expectation_for_true_chances_and_large_for_wrong_ones() -> None:
    rng = np.random.default_rng(2)
    chances = rng.random(40_000)
    labels = rng.random(40_000) < chances
    true, wrong = calibration_error(labels, chances), calibration_error(labels, chances / 2)
    assert true is not None
    assert wrong is not None
    assert true < 0.01
    assert wrong == pytest.approx(0.25, abs=0.01)


def test_one_class_alone_has_no_auc_and_the_other_figures() -> None:
    figures = measure(np.array([0, 0, 1]), np.array([0, 0, 0]), np.array([0.1, 0.2, 0.3]))
    assert {"auc", "gauc", "wgauc", "calibration"}.isdisjoint(figures)
    assert figures["exposures"] == 3
    assert figures["users_with_both"] == 0
    assert "log_loss" in figures


def test_groups_by_length_hold_the_exposures_of_such_users() -> None:
    rng = np.random.default_rng(3)
    users = rng.integers(0, 50, 2000)
    lengths = np.array([0, 3, 9, 10, 29, 40, 200])[users % 7]
    labels, chances = rng.random(2000) < 0.4, rng.random(2000)
    groups = by_length(users, labels, chances, lengths)
    bounds = {"0": (0, 0), "1-9": (1, 9), "10-29": (10, 29), "30-99": (30, 99), "100+": (100, 10**9)}
    assert list(groups) == list(bounds)
    for name, (least, most) in bounds.items():
        inside = (lengths >= least) & (lengths <= most)
        assert groups[name] == measure(users[inside], labels[inside], chances[inside])


def test_the_weights_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    features = np.column_stack([np.ones(3000), rng.normal(size=(3000, 2))])
    labels = rng.random(3000) < 1 / (1 + np.exp(-(features @ [-0.5, 1.2, 0.4])))
    expected = LogisticRegression(C=np.inf, tol=1e-10).fit(features[:, 1:], labels)
    got = logistic_weights(features, labels.astype(float))
    assert got == pytest.approx([expected.intercept_[0], *expected.coef_[0]], abs=1e-5)


def test_the_regression_recovers_the_chances_of_items_and_users() -> None:
    rng = np.random.default_rng(5)
    taste_U, quality_I = rng.normal(size=80), rng.normal(size=60)
    users, items = rng.integers(0, 80, 40_000), rng.integers(0, 60, 40_000)
    true = 1 / (1 + np.exp(-(taste_U[users] + quality_I[items])))
    labels = rng.random(40_000) < true
    half = slice(0, 20_000), slice(20_000, None)
    fitted = fit_means(users[half[0]], items[half[0]], labels[half[0]], 80, 60)
    best, got = (
        auc(labels[half[1]], true[half[1]]),
        auc(labels[half[1]], fitted.chances(users[half[1]], items[half[1]])),
    )
    assert best is not None
    assert got is not None
    assert best - 0.01 < got <= best + 0.005


def test_labels_that_follow_nothing_are_not_predicted() -> None:
    """With an exposure in its own means the fit would believe in means that hold noise."""
    rng = np.random.default_rng(6)
    users, items = rng.integers(0, 2000, 8000), rng.integers(0, 1500, 8000)
    labels = rng.random(8000) < 0.3
    fitted = fit_means(users[:4000], items[:4000], labels[:4000], 2000, 1500)
    assert np.abs(fitted.weights[1:]).max() < 1
    loss = log_loss(labels[4000:], fitted.chances(users[4000:], items[4000:]))
    assert loss is not None
    assert loss < 0.63  # entropy of 0.3: 0.611
    unseen = fit_means(users[:4000] % 5, items[:4000] % 5, labels[:4000], 10, 10)
    share = labels[:4000].mean()
    logit = np.log(share) - np.log1p(-share)
    expected = 1 / (1 + np.exp(-(unseen.weights @ [1, logit, logit])))
    assert unseen.chances(np.array([9]), np.array([9])) == pytest.approx([expected])
    assert PRIOR > 0


def test_values_of_users_have_the_figure_as_mean_and_the_spread_of_resampled_users() -> None:
    rng = np.random.default_rng(11)
    users = np.repeat(np.arange(90) * 3, rng.integers(1, 25, 90))
    taste = rng.normal(size=271)[users]
    labels = rng.random(len(users)) < 1 / (1 + np.exp(-taste))
    chances = 1 / (1 + np.exp(-(0.7 * taste + rng.normal(size=len(users)))))
    values = user_values(users, labels, chances)
    expected = measure(users, labels, chances)
    assert {name: found.mean() for name, found in values.items()} == {
        name: pytest.approx(expected[name], abs=1e-12) for name in ("auc", "gauc", "wgauc", "log_loss")
    }
    rows_of = [np.flatnonzero(users == user) for user in np.unique(users)]
    drawn = []
    for _ in range(250):
        chosen = [rows_of[user] for user in rng.integers(0, 90, 90)]
        again = np.repeat(np.arange(90), [len(rows) for rows in chosen])
        rows = np.concatenate(chosen)
        drawn.append(measure(again, labels[rows], chances[rows]))
    for name, found in values.items():
        spread = np.std([draw[name] for draw in drawn])
        assert found.std() / np.sqrt(90) == pytest.approx(spread, rel=0.15), name


def test_values_of_users_are_absent_where_a_figure_is() -> None:
    alone = user_values(np.array([1, 1, 2]), np.array([True, True, True]), np.array([0.2, 0.4, 0.9]))
    assert set(alone) == {"log_loss"}
    apart = user_values(np.array([1, 1, 2]), np.array([True, True, False]), np.array([0.2, 0.4, 0.9]))
    assert set(apart) == {"log_loss", "auc"}
    assert apart["auc"].mean() == 0


def write_exposures(folder: Path, rng: np.random.Generator) -> Exposures:
    counts = rng.integers(0, 60, 40)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    rows = int(offsets[-1])
    exposures = Exposures(
        items_X=rng.integers(0, 30, rows).astype(np.int32),
        actions_XA=np.stack([rng.integers(0, 2, rows), rng.integers(0, 4, rows)], 1).astype(np.uint8),
        timestamps_X=np.arange(rows),
        offsets=offsets,
        train_end=offsets[:-1] + counts * 7 // 10,
        valid_end=offsets[:-1] + counts * 8 // 10,
        actions=Actions(("click", "watch"), ((1.0,), (3.0, 10.0, 30.0))),
    )
    exposures.write(folder)
    (folder / "splits.json").write_text(json.dumps({"actions": exposures.actions.as_json()}))
    return exposures


def test_the_table_has_a_line_for_each_label_with_the_figures_of_the_test_part(tmp_path: Path) -> None:
    exposures = write_exposures(tmp_path, np.random.default_rng(7))
    figures, text = means_figures(tmp_path)
    lines = text.splitlines()
    names = ["click>=1", "watch>=3", "watch>=10", "watch>=30"]
    assert [line.split()[0] for line in lines[2:] if line[0] != " "] == names
    train, test = exposures.part("train"), exposures.part("test")
    users, labels = exposures.users_X(), exposures.actions_XA[:, 1] >= 2
    fitted = fit_means(users[train], exposures.items_X[train], labels[train], 40, 30)
    expected = measure(users[test], labels[test], fitted.chances(users[test], exposures.items_X[test]))
    line = next(line for line in lines if line.startswith("watch>=10"))
    assert line.split()[1:4] == [f"{expected[name]:.4f}" for name in ("auc", "gauc", "wgauc")]
    assert {name: figures[f"means_{name}_watch_10"] for name in ("auc", "gauc", "wgauc", "log_loss")} == {
        name: pytest.approx(expected[name], abs=1e-6) for name in ("auc", "gauc", "wgauc", "log_loss")
    }


def test_splits_without_actions_have_no_table(tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text("{}")
    assert means_figures(tmp_path) == ({}, "")
