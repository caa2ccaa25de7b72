"""The sizes that are advised reach the wanted collision rate, and sizes much smaller do not."""

from typing import Any

import numpy as np
import pytest

from pipeline.quantize.advice import sizes_for
from pipeline.quantize.collisions import group_by_codes

ITEMS = 20_000


def drawn(levels: int, codes: int, unevenness: float) -> tuple[float, float]:
    """(the collision rate, the share of pairs that collide) of items with random codes, 0 of them the most frequent."""
    rng = np.random.default_rng(levels * codes)
    codes_IL = (codes * rng.random((ITEMS, levels)) ** (1 + unevenness)).astype(int)
    groups, sizes = group_by_codes(codes_IL)
    return float((sizes[groups] > 1).mean()), float((sizes * (sizes - 1)).sum() / (ITEMS * (ITEMS - 1)))


@pytest.mark.parametrize("wanted", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("unevenness", [0.0, 0.5, 1.0])
def test_advised_sizes_reach_the_wanted_rate_and_much_smaller_ones_do_not(wanted: float, unevenness: float) -> None:
    rate, pairs = drawn(3, 16, unevenness)
    assert rate > 0.9
    sizes = sizes_for(wanted, pairs=pairs, identical=0.0, items=ITEMS, levels=3, codes=16)
    assert sizes is not None
    assert sizes.levels is not None
    assert sizes.codes is not None
    for levels, codes in ((sizes.levels, 16), (3, sizes.codes)):
        assert drawn(levels, codes, unevenness)[0] < 1.1 * wanted + 0.001
    for levels, codes in ((sizes.levels - 2, 16), (3, sizes.codes // 4)):
        assert drawn(levels, codes, unevenness)[0] > wanted


def test_identical_vectors_set_a_floor_that_no_size_goes_below() -> None:
    sizes: dict[str, Any] = {"pairs": 1e-3, "items": 1000, "levels": 3, "codes": 16}
    assert sizes_for(0.2, identical=0.2, **sizes) is None
    apart = sizes_for(0.125, identical=0.0, **{**sizes, "items": 800})  # the same of the items that can be told apart
    assert sizes_for(0.3, identical=0.2, **sizes) == apart != sizes_for(0.3, identical=0.0, **sizes)


@pytest.mark.parametrize("pairs", [0.0, 1e-12, 0.5, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("wanted", [0.0, 1e-9, 0.999, 1.0])
def test_the_bounds_of_the_knobs_hold_in_every_case(pairs: float, wanted: float) -> None:
    for items in (1, 2, 10**7):
        sizes = sizes_for(wanted, pairs=pairs, identical=0.0, items=items, levels=1, codes=2)
        assert sizes is None or 0 <= (sizes.levels or 1) <= 32
        assert sizes is None or 1 <= (sizes.codes or 2) <= 65_536
