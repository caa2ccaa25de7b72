"""quality.json against the definitions of its numbers."""

import csv
import io
from collections import Counter

import numpy as np
import pytest

from pipeline.quantize.neighbours import category_agreement, neighbour_agreement
from pipeline.quantize.quality import code_usage, level_table, quality_metrics
from pipeline.quantize.quantizer import Quantized


def slow_gini(counts: list[int]) -> float:
    """Mean absolute difference of all pairs over twice the mean."""
    pairs = [abs(a - b) for a in counts for b in counts]
    return sum(pairs) / len(pairs) / (2 * sum(counts) / len(counts))


@pytest.mark.parametrize("counts", [[5, 5, 5, 5], [0, 0, 0, 9], [1, 0, 7, 2, 2], [3]])
def test_code_usage_equals_its_definition(counts: list[int]) -> None:
    usage = code_usage(np.array(counts))
    shares = [count / sum(counts) for count in counts if count]
    assert usage["used_codes"] == len(shares)
    assert usage["perplexity"] == pytest.approx(np.prod([share**-share for share in shares]), abs=1e-3)
    assert usage["entropy_bits"] == pytest.approx(np.log2(usage["perplexity"]), abs=1e-3)
    assert usage["gini"] == pytest.approx(slow_gini(counts), abs=1e-4)


def test_collisions_and_prefixes_are_counted_without_the_digit() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (60, 3))
    vectors = rng.normal(size=(60, 5)).astype(np.float32)
    errors = rng.random(60)
    vectors[[3, 5, 9]] = vectors[7]
    categories = rng.integers(-1, 3, 60)
    quality = quality_metrics(
        vectors, Quantized(codes, {}, errors, vectors, lambda _: errors), codes=4, categories_I=categories
    )
    groups = Counter(map(tuple, codes.tolist()))
    assert quality["unique_codes"] == len(groups)
    assert quality["largest_group"] == max(groups.values())
    assert quality["collision_rate"] == pytest.approx(sum(n for n in groups.values() if n > 1) / 60, abs=1e-6)
    assert quality["two_level_prefixes"] == len({tuple(own[:2]) for own in groups})
    assert quality["relative_reconstruction_error"] == pytest.approx((errors**2).sum() / (vectors**2).sum(), abs=1e-5)
    assert quality["identical_vectors"] == pytest.approx(4 / 60, abs=1e-6)
    assert quality["level_2"]["used_codes"] == len(set(codes[:, 1]))
    assert quality["level_2"]["prefixes"] == quality["two_level_prefixes"]
    agreement, by_chance = category_agreement(codes, categories)
    assert quality["level_1"]["category_agreement"] == pytest.approx(agreement[0], abs=1e-4)
    assert quality["category_agreement_by_chance"] == pytest.approx(by_chance, abs=1e-4)
    assert quality["level_3"]["neighbour_agreement"] == pytest.approx(neighbour_agreement(vectors, codes)[2], abs=1e-4)


def test_the_table_has_a_row_per_level_and_leaves_empty_what_does_not_exist() -> None:
    figures = {
        "used_codes": 8,
        "perplexity": 7.5,
        "entropy_bits": 2.9,
        "gini": 0.1,
        "prefixes": 8,
        "neighbour_agreement": 0.5,
        "category_agreement": None,
    }
    table = level_table({"items": 9, "level_1": figures, "level_2": figures | {"prefixes": 60}})
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["level"] for row in rows] == ["level 1", "level 2"]
    assert [row["prefixes"] for row in rows] == ["8", "60"]
    assert rows[0]["category_agreement"] == ""
    assert {name: rows[0][name] for name in ("used_codes", "gini")} == {"used_codes": "8", "gini": "0.1"}
