"""Packing sorts windows by length and loses nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ops.layout import Layout
from pipeline.packing.histories import Histories
from pipeline.packing.shape import Shape

windows = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=12)


def pack(rows: list[list[int]], **options: Any) -> Histories:
    return Histories.pack(np.concatenate(rows), np.cumsum([0, *map(len, rows)]), **options)


def unpack(histories: Histories) -> list[list[int]]:
    return [part.tolist() for part in histories.items_N.split(histories.lengths_W.tolist())]


@settings(max_examples=60)
@given(windows)
def test_rows_are_sorted_by_length_and_equal_lengths_keep_their_order(rows: list[list[int]]) -> None:
    histories = pack(rows)
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    assert histories.order.tolist() == by_length
    assert unpack(histories) == [rows[row] for row in by_length]


@settings(max_examples=60)
@given(windows)
def test_groups_are_the_runs_of_equal_lengths(rows: list[list[int]]) -> None:
    histories = pack(rows)
    groups = Layout.packed(histories.lengths_W, histories.longest).groups
    expanded = [group.keys for group in groups for _ in range(group.sequences)]
    assert expanded == histories.lengths_W.tolist()
    assert len({group.keys for group in groups}) == len(groups)
    assert all(type(number) is int for group in groups for number in (group.sequences, group.queries, group.keys))


@settings(max_examples=60)
@given(windows)
def test_results_come_back_in_the_order_of_the_input(rows: list[list[int]]) -> None:
    histories = pack(rows)
    sums_W = torch.tensor([sum(row) for row in unpack(histories)])
    assert histories.in_input_order(sums_W).tolist() == [sum(row) for row in rows]


def test_a_window_may_begin_anywhere_in_a_longer_array() -> None:
    histories = Histories.pack(np.arange(10, dtype=np.int32), np.array([2, 5, 6]))
    assert unpack(histories) == [[5], [2, 3, 4]]


@pytest.mark.parametrize("offsets", [[0], [0, 2, 2]], ids=["no window", "a window without items"])
def test_nothing_to_read_is_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one item"):
        Histories.pack(np.arange(offsets[-1]), np.array(offsets))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(30, 400))
def test_batches_of_about_one_size_are_filled_up_to_one_shape(seed: int, longest: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [rng.integers(1, longest + 1, size=count + rng.integers(-count // 30, count // 30 + 1)) for _ in range(8)]
    shape = Shape.of(batches, longest, margin=0.03)
    for lengths_W in batches:
        filling_W = shape.filling(lengths_W, longest)
        assert len(lengths_W) + len(filling_W) == shape.windows
        assert lengths_W.sum() + filling_W.sum() == shape.items
        assert filling_W.min() >= 1
        assert filling_W.max() <= longest


def test_a_batch_that_a_shape_cannot_hold_is_filled_up_to_a_larger_one() -> None:
    shape = Shape(windows=12, items=30)
    assert shape.filling(np.full(10, 5), longest=5).tolist() == [1, 1]  # too many items
    assert shape.filling(np.ones(11, int), longest=5).tolist() == [5, 5, 5, 4]  # one window cannot hold the rest
    assert shape.filling(np.full(40, 2), longest=5).tolist() == [2, 2]  # too many of both


def test_a_batch_stays_as_it_is_where_the_windows_that_fill_it_cannot_hold_enough() -> None:
    lengths_W = np.repeat([3, 4], [36, 232])  # 1,036 items; the next size is 1,088, but 4 windows hold 28 at most
    assert len(Shape(windows=272, items=905).filling(lengths_W, longest=7)) == 0
