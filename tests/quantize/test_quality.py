"""quality.json against the definitions of its numbers."""

from collections import Counter

import numpy as np
import pytest

from pipeline.quantize.quality import code_usage, measure
from pipeline.quantize.quantizer import Quantized


def slow_gini(counts: list[int]) -> float:
    """Mean absolute difference of all pairs over twice the mean."""
    pairs = [abs(a - b) for a in counts for b in counts]
    return sum(pairs) / len(pairs) / (2 * sum(counts) / len(counts))


@pytest.mark.parametrize("counts", [[5, 5, 5, 5], [0, 0, 0, 9], [1, 0, 7, 2, 2], [3]])
def test_code_usage_equals_its_definition(counts):
    usage = code_usage(np.array(counts))
    shares = [count / sum(counts) for count in counts if count]
    assert usage["used_codes"] == len(shares)
    assert usage["perplexity"] == pytest.approx(np.prod([share ** -share for share in shares]), abs=1e-3)
    assert usage["entropy_bits"] == pytest.approx(np.log2(usage["perplexity"]), abs=1e-3)
    assert usage["gini"] == pytest.approx(slow_gini(counts), abs=1e-4)


def test_collisions_and_prefixes_are_counted_without_the_digit():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (60, 3))
    vectors = rng.normal(size=(60, 5)).astype(np.float32)
    errors = rng.random(60)
    quality = measure(vectors, Quantized(codes, {}, errors), codes=4)
    groups = Counter(map(tuple, codes.tolist()))
    assert quality["unique_codes"] == len(groups)
    assert quality["largest_group"] == max(groups.values())
    assert quality["collision_rate"] == pytest.approx(sum(n for n in groups.values() if n > 1) / 60, abs=1e-6)
    assert quality["two_level_prefixes"] == len({tuple(own[:2]) for own in groups})
    assert quality["relative_reconstruction_error"] == pytest.approx((errors**2).sum() / (vectors**2).sum(), abs=1e-5)
    assert quality["level_2"]["used_codes"] == len(set(codes[:, 1]))
