"""The deduplication digit against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.quantize.collisions import deduplication_digits, group_by_codes

few_codes = st.integers(1, 3).flatmap(
    lambda levels: st.lists(st.tuples(*[st.integers(0, 2)] * levels), min_size=1, max_size=30)
)


@given(few_codes)
@settings(max_examples=60)
def test_the_digit_is_the_rank_among_items_of_equal_codes_in_item_order(codes: list[tuple[int, ...]]) -> None:
    digits, width = deduplication_digits(np.array(codes), 0)
    assert digits.tolist() == [codes[:item].count(codes[item]) for item in range(len(codes))]
    assert width == max(codes.count(one) for one in codes)


@given(few_codes)
@settings(max_examples=60)
def test_codes_and_digit_together_name_one_item(codes: list[tuple[int, ...]]) -> None:
    digits, _ = deduplication_digits(np.array(codes), 0)
    assert len({(*own, digit) for own, digit in zip(codes, digits, strict=True)}) == len(codes)


@given(few_codes)
@settings(max_examples=60)
def test_groups_are_numbered_in_the_order_of_their_codes(codes: list[tuple[int, ...]]) -> None:
    groups, sizes = group_by_codes(np.array(codes))
    distinct = sorted(set(codes))
    assert groups.tolist() == [distinct.index(own) for own in codes]
    assert sizes.tolist() == [codes.count(own) for own in distinct]


def test_a_wider_digit_than_needed_is_kept_as_asked() -> None:
    assert deduplication_digits(np.array([[1], [1], [2]]), 5)[1] == 5


def test_a_digit_too_narrow_for_the_largest_group_names_that_group() -> None:
    codes = np.array([[4, 9], [7, 1], [4, 9], [7, 1], [4, 9]])
    with pytest.raises(UserError, match=r"is 2, but 3 items share the codes \[4, 9\]: item_id 0, 2, 4") as caught:
        deduplication_digits(codes, 2)
    assert "set quantize.digit_width to 3 or more" in caught.value.fix
