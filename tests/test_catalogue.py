"""The prefix table names exactly the children that the catalogue's Semantic IDs have."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.catalogue import Catalogue

WIDTHS = (4, 3, 5)
sids = st.lists(st.tuples(*(st.integers(0, width - 1) for width in WIDTHS)), min_size=1, max_size=40, unique=True)


def prefixes(rows: list[tuple[int, int, int]], level: int) -> list[tuple[int, ...]]:
    """All prefixes of a length in lexicographic order: the index in the list is the node."""
    return sorted({tuple(row[:level]) for row in rows})


@settings(max_examples=80)
@given(sids)
def test_children_are_those_of_brute_force_sets(rows: list[tuple[int, int, int]]) -> None:
    catalogue = Catalogue(np.array(rows), WIDTHS)
    for level in range(len(WIDTHS)):
        below = prefixes(rows, level + 1)
        fanout = 0
        for node, prefix in enumerate(prefixes(rows, level)):
            first, stop = catalogue.first_child(level)[node : node + 2].tolist()
            codes = catalogue.code(level)[first:stop].tolist()
            assert codes == [longer[-1] for longer in below if longer[:-1] == prefix]
            assert below[first:stop] == [(*prefix, code) for code in codes]
            fanout = max(fanout, stop - first)
        assert catalogue.fanout[level] == fanout
        assert catalogue.prefixes[level + 1] == len(below)


@settings(max_examples=80)
@given(sids)
def test_a_child_is_found_by_its_code_or_not_at_all(rows: list[tuple[int, int, int]]) -> None:
    catalogue = Catalogue(np.array(rows), WIDTHS)
    for level, width in enumerate(WIDTHS):
        slots = {prefix: node for node, prefix in enumerate(prefixes(rows, level + 1))}
        for node, prefix in enumerate(prefixes(rows, level)):
            found = catalogue.child(level, torch.full((width,), node), torch.arange(width))
            assert found.tolist() == [slots.get((*prefix, code), -1) for code in range(width)]
        assert catalogue.child(level, torch.full((width,), -1), torch.arange(width)).eq(-1).all()


@settings(max_examples=40)
@given(sids)
def test_leaves_are_the_items_in_the_order_of_their_semantic_ids(rows: list[tuple[int, int, int]]) -> None:
    catalogue = Catalogue(np.array(rows), WIDTHS)
    assert [rows[item] for item in catalogue.item_of_leaf_I.tolist()] == sorted(rows)
    for level, before in enumerate(catalogue.leaves_before):
        counts = [sum(row[:level] == prefix for row in rows) for prefix in prefixes(rows, level)]
        assert np.diff(before).tolist() == counts


def test_items_with_one_semantic_id_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"items 0 and 2 share the Semantic ID \[1, 2, 3\]"):
        Catalogue(np.array([[1, 2, 3], [0, 0, 0], [1, 2, 3]]), WIDTHS)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(*(st.integers(0, width - 1) for width in WIDTHS)), min_size=1, max_size=40),
    st.randoms(),
    st.integers(1, 12),
)
def test_without_a_digit_the_items_of_a_leaf_follow_each_other_by_item_id(
    rows: list[tuple[int, int, int]], random: Random, slots: int
) -> None:
    catalogue = Catalogue(np.array(rows), WIDTHS, digit=False)
    leaves = prefixes(rows, 3)
    assert catalogue.prefixes[-1] == len(leaves)
    assert catalogue.shares == (len(leaves) < len(rows))
    assert [leaves[leaf] for leaf in catalogue.leaf_of_item_I.tolist()] == rows
    beams = [random.choice([-1, random.randrange(len(leaves))]) for _ in range(4)]
    expected = [
        (item, beam)
        for beam, leaf in enumerate(beams)
        for item in ([-1] if leaf < 0 else [i for i, row in enumerate(rows) if row == leaves[leaf]])
    ]
    items, sources = catalogue.items_of(torch.tensor([beams]), slots)
    assert list(zip(items[0].tolist(), sources[0].tolist(), strict=True)) == (expected + [(-1, 4)] * slots)[:slots]


def test_the_bucket_is_all_codes_but_a_digit() -> None:
    codes = np.array([[0, 1, 2], [3, 2, 1]])
    assert Catalogue(codes, WIDTHS).bucket_levels == 2
    assert Catalogue(codes, WIDTHS, digit=False).bucket_levels == 3


@pytest.mark.parametrize("code", [-1, 3])
def test_a_code_outside_its_level_is_refused_by_name(code: int) -> None:
    with pytest.raises(ValueError, match=rf"item 1 has code {code} at level 2, which allows 0 to 2"):
        Catalogue(np.array([[0, 0, 0], [0, code, 0]]), WIDTHS)


@pytest.mark.parametrize("shape", [(0, 3), (5, 2), (6,)])
def test_codes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="3 levels"):
        Catalogue(np.zeros(shape, int), WIDTHS)


def test_it_moves_with_a_model_and_is_not_saved_with_it() -> None:
    catalogue = Catalogue(np.array([[0, 1, 2], [3, 2, 1]]), WIDTHS)
    assert not catalogue.state_dict()
    assert {buffer.device.type for buffer in catalogue.to("meta").buffers()} == {"meta"}
