"""quality.json against the definitions of its numbers."""

import csv
import io
from collections import Counter

import numpy as np
import pytest

from pipeline.quantize import quality
from pipeline.quantize.neighbours import category_agreement, neighbour_agreement
from pipeline.quantize.quality import code_usage, level_table, quality_metrics
from pipeline.quantize.quantizer import Quantized


def of_codes(codes: np.ndarray, errors: np.ndarray, rows: np.ndarray) -> Quantized:
    return Quantized(codes_IL=codes, codebooks={}, errors_I=errors, last_rows_Ik=rows, errors_with=lambda _: errors)


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
    quality = quality_metrics(vectors, of_codes(codes, errors, vectors), codes=4, categories_I=categories)
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


@pytest.mark.parametrize("width", [1, 3, 40])
def test_identical_vectors_are_those_with_equal_bits(width: int) -> None:
    rng = np.random.default_rng(width)
    vectors = rng.integers(-2, 3, (400, width)).astype(np.float32)
    vectors[::7] = 0
    vectors[::14] *= -1  # zeros of the other sign have other bits
    seen = Counter(row.tobytes() for row in vectors)
    expected = [seen[row.tobytes()] > 1 for row in vectors]
    assert quality._identical(vectors).tolist() == expected
    codes = rng.integers(0, 3, (400, 2))
    measured = quality_metrics(vectors, of_codes(codes, np.ones(400), vectors), codes=3)
    left = [tuple(own) for own, twin in zip(codes.tolist(), expected, strict=True) if not twin]
    pairs = [(a, b) for a in range(len(left)) for b in range(a)]
    share = np.mean([left[a] == left[b] for a, b in pairs]) if pairs else 0.0
    assert measured["colliding_pairs"] == pytest.approx(share, rel=1e-5)
