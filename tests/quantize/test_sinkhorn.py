"""Items that collide get other codes of the last level: all different as long as a prefix has codes left."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.quantize.sinkhorn import assign, spread_last_codes, transport_plan


def collided(seed: int, items: int = 60, levels: int = 2, codes: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, each the nearest one at the last level; what that level quantized; its codebook)."""
    rng = np.random.default_rng(seed)
    rows, book = rng.normal(size=(items, 3)), rng.normal(size=(codes, 3))
    last = ((rows[:, None] - book) ** 2).sum(-1).argmin(1)
    first = rng.integers(0, 3, (items, levels - 1))
    return np.column_stack([first, last]).astype(np.int32), rows, book


@given(st.integers(0, 500))
@settings(max_examples=40)
def test_no_code_of_a_prefix_is_taken_more_often_than_the_number_of_its_items_demands(seed: int) -> None:
    codes, rows, book = collided(seed, items=25)
    spread = spread_last_codes(codes, rows, book)
    per_prefix = Counter(codes[:, 0].tolist())
    alone = {tuple(own) for own, count in Counter(map(tuple, codes.tolist())).items() if count == 1}
    for (prefix, last), count in Counter(zip(codes[:, 0].tolist(), spread.tolist(), strict=True)).items():
        kept = sum(own[0] == prefix for own in alone)
        free = len(book) - kept
        assert count <= max(1, -(-(per_prefix[prefix] - kept) // free))
        if (prefix, last) in alone:
            assert count == 1


@given(st.integers(0, 500))
@settings(max_examples=40)
def test_items_that_collided_with_none_keep_their_codes(seed: int) -> None:
    codes, rows, book = collided(seed)
    groups = Counter(map(tuple, codes.tolist()))
    alone = np.array([groups[tuple(own)] == 1 for own in codes.tolist()])
    assert (spread_last_codes(codes, rows, book)[alone] == codes[alone, -1]).all()


def test_a_single_level_is_one_prefix() -> None:
    codes, rows, book = collided(1, items=6, levels=1)
    assert sorted(spread_last_codes(codes, rows, book)) == list(range(6))


def test_a_prefix_with_more_items_than_codes_shares_them_evenly() -> None:
    rng = np.random.default_rng(2)
    spread = spread_last_codes(np.zeros((15, 2), np.int32), rng.normal(size=(15, 3)), rng.normal(size=(6, 3)))
    assert sorted(Counter(spread.tolist()).values()) == [2, 2, 2, 3, 3, 3]


def test_the_plan_gives_every_item_and_every_code_its_share() -> None:
    plan = np.exp(transport_plan(np.random.default_rng(3).random((4, 9))))
    assert plan.sum(axis=0) == pytest.approx(np.full(9, 1 / 9), rel=1e-6)
    assert plan.sum(axis=1) == pytest.approx(np.full(4, 1 / 4), rel=1e-3)


def test_the_plan_has_the_form_that_makes_it_the_solution_of_entropic_transport() -> None:
    """Logarithm of the plan plus cost over temperature is a sum of one number per row and one per column."""
    costs = np.random.default_rng(4).random((5, 7))
    left = transport_plan(costs) + costs * 20 / costs.mean()
    differences = left - left[:1]
    assert differences == pytest.approx(np.repeat(differences[:, :1], 7, axis=1), abs=1e-9)


def test_of_two_items_the_one_that_loses_less_moves() -> None:
    costs = np.array([[0.0, 0.1], [0.0, 1.0]])
    assert assign(costs).tolist() == [1, 0]


def test_costs_of_zero_still_give_each_item_a_code_of_its_own() -> None:
    assert sorted(assign(np.zeros((3, 5)))) == sorted(set(assign(np.zeros((3, 5)))))
