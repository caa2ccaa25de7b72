"""Packing sorts windows by length and loses nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.backbones.histories import Histories

windows = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=12)


def pack(rows, **options) -> Histories:
    return Histories.pack(np.concatenate(rows), np.cumsum([0, *map(len, rows)]), **options)


def unpack(histories) -> list[list[int]]:
    return [part.tolist() for part in histories.items_N.split(histories.lengths_W.tolist())]


@settings(max_examples=60, deadline=None)
@given(windows)
def test_rows_are_sorted_by_length_and_equal_lengths_keep_their_order(rows):
    histories = pack(rows)
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    assert histories.order.tolist() == by_length
    assert unpack(histories) == [rows[row] for row in by_length]


@settings(max_examples=60, deadline=None)
@given(windows)
def test_groups_are_the_runs_of_equal_lengths(rows):
    histories = pack(rows)
    expanded = [length for count, length in histories.groups for _ in range(count)]
    assert expanded == histories.lengths_W.tolist()
    assert len({length for _, length in histories.groups}) == len(histories.groups)
    assert all(type(number) is int for group in histories.groups for number in group)


@settings(max_examples=60, deadline=None)
@given(windows)
def test_results_come_back_in_the_order_of_the_input(rows):
    histories = pack(rows)
    sums_W = torch.tensor([sum(row) for row in unpack(histories)])
    assert histories.in_input_order(sums_W).tolist() == [sum(row) for row in rows]


def test_a_window_may_begin_anywhere_in_a_longer_array():
    histories = Histories.pack(np.arange(10, dtype=np.int32), np.array([2, 5, 6]))
    assert unpack(histories) == [[5], [2, 3, 4]]


@pytest.mark.parametrize("offsets", [[0], [0, 2, 2]], ids=["no window", "a window without items"])
def test_nothing_to_read_is_refused(offsets):
    with pytest.raises(ValueError, match="at least one item"):
        Histories.pack(np.arange(offsets[-1]), np.array(offsets))
