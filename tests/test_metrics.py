"""Metrics equal their textbook definitions, computed user by user on ranked lists."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metric_names import METRICS
from pipeline.metrics import gains, ndcg_at, recall_at, summarise

LISTS = st.lists(st.tuples(st.permutations(range(12)), st.integers(0, 15)), min_size=1, max_size=30)


def textbook(metric: str, ranked: list[int], target: int) -> float:
    """The general definition over a list of relevances, with one relevant item."""
    name, k = metric.split("_at_")
    relevance = [int(item == target) for item in ranked[: int(k)]]
    if name == "recall":
        return sum(relevance) / 1
    if name == "ndcg":
        ideal = 1 / math.log2(2)
        return sum(r / math.log2(index + 2) for index, r in enumerate(relevance)) / ideal
    return next((1 / (index + 1) for index, r in enumerate(relevance) if r), 0.0)


def rank_of(ranked: list[int], target: int) -> int:
    return ranked.index(target) + 1 if target in ranked else 0


@given(LISTS)
@settings(max_examples=50)
def test_every_metric_is_the_mean_of_its_textbook_definition(cases: list[tuple[list[int], int]]) -> None:
    ranks = np.array([rank_of(list(ranked), target) for ranked, target in cases])
    for metric, value in summarise(ranks).items():
        expected = [textbook(metric, list(ranked), target) for ranked, target in cases]
        assert value == pytest.approx(sum(expected) / len(expected), abs=1e-12)
        np.testing.assert_allclose(gains(metric, ranks), expected, atol=1e-12)


def test_rank_zero_is_a_miss_and_stays_in_the_denominator() -> None:
    assert recall_at(np.array([1, 0, 0, 0]), 5) == 0.25
    assert ndcg_at(np.array([1, 0]), 10) == 0.5
    assert summarise(np.array([2, 0]))["mrr_at_10"] == 0.25


def test_a_rank_below_the_cut_is_a_miss() -> None:
    ranks = np.array([6, 10, 11])
    assert recall_at(ranks, 5) == 0.0
    assert recall_at(ranks, 10) == pytest.approx(2 / 3)


def test_no_users_gives_zeros_and_all_names() -> None:
    assert summarise(np.array([], int)) == dict.fromkeys(METRICS, 0.0)
