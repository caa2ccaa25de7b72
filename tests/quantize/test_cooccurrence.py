"""Vectors from interactions: counts, SPPMI and SVD against slow float64 loops, and held-out interactions left out."""

from collections import Counter
from dataclasses import replace
from math import log

import numpy as np
import pytest
from scipy import sparse

from pipeline.artifacts import TrainingPart
from pipeline.errors import UserError
from pipeline.quantize import cooccurrence
from pipeline.quantize.cooccurrence import interaction_vectors, pair_counts, shifted_ppmi

ITEMS = 25


def random_part(seed: int, users: int = 40, longest: int = 12) -> TrainingPart:
    """Sequences of random lengths, 0 and 1 among them, whose last interactions may be held out."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    train_end = offsets[1:] - rng.integers(0, np.minimum(lengths, 2) + 1)
    # Items 0 to 4 are rare, so that some of them co-occur with no other.
    items_N = np.where(rng.random(offsets[-1]) < 0.02, rng.integers(0, 5, offsets[-1]), 0)
    items_N = np.where(items_N > 0, items_N, 5 + rng.integers(0, ITEMS - 5, offsets[-1])).astype(np.int32)
    return TrainingPart(items_N, offsets, train_end)


def slow_counts(part: TrainingPart, window: int) -> Counter[tuple[int, int]]:
    counts: Counter[tuple[int, int]] = Counter()
    for user, end in enumerate(part.train_end):
        history = part.items_N[part.offsets[user] : end].tolist()
        for later in range(len(history)):
            for earlier in range(max(0, later - window), later):
                first, second = history[earlier], history[later]
                if first != second:
                    counts[first, second] += window + 1 - (later - earlier)
                    counts[second, first] += window + 1 - (later - earlier)
    return counts


def slow_sppmi(counts: Counter[tuple[int, int]], shift: float) -> np.ndarray:
    sums: Counter[int] = Counter()
    for (first, _), count in counts.items():
        sums[first] += count
    everything = sum(sums.values())
    dense = np.zeros((ITEMS, ITEMS))
    for (first, second), count in counts.items():
        dense[first, second] = max(log(count * everything / (sums[first] * sums[second])) - log(shift), 0)
    return dense


@pytest.mark.parametrize("window", [1, 3, 30])
@pytest.mark.parametrize("chunk", [3, 2**22])
def test_pairs_are_counted_as_in_a_loop(window: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "CHUNK", chunk)
    part = random_part(window)
    expected = np.zeros((ITEMS, ITEMS), np.int64)
    for pair, count in slow_counts(part, window).items():
        expected[pair] = count
    assert expected.any()
    assert (pair_counts(part, ITEMS, window).toarray() == expected).all()


@pytest.mark.parametrize("shift", [1, 1.5, 4])
def test_sppmi_is_that_of_a_loop(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "CHUNK", 7)
    part = random_part(5)
    weights_II = shifted_ppmi(pair_counts(part, ITEMS, 4), shift)
    expected = slow_sppmi(slow_counts(part, 4), shift)
    assert weights_II.nnz == np.count_nonzero(expected) > 0
    assert np.allclose(weights_II.toarray(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dimensions", [3, 500])
def test_vectors_are_the_leading_ones_of_a_dense_svd(dimensions: int) -> None:
    part = random_part(7)
    expected_II = slow_sppmi(slow_counts(part, 3), 1)
    left_II, scale_I, _ = np.linalg.svd(expected_II)
    width = min(dimensions, np.count_nonzero(expected_II.any(axis=1)))
    rows_Id = left_II[:, :width] * np.sqrt(scale_I[:width])
    related_I = expected_II.any(axis=1)
    rows_Id[related_I] /= np.linalg.norm(rows_Id[related_I], axis=1)[:, None]
    rows_Id[~related_I] = 0

    found = interaction_vectors(part, ITEMS, window=3, shift=1, dimensions=dimensions)
    assert found.vectors_Id.dtype == np.float32
    assert found.vectors_Id.shape == (ITEMS, width)
    assert found.pairs == np.count_nonzero(expected_II) // 2
    # Inner products do not depend on the signs that an SVD leaves open.
    assert np.allclose(found.vectors_Id @ found.vectors_Id.T, rows_Id @ rows_Id.T, rtol=0, atol=1e-3)
    assert (~related_I).any()
    assert (found.vectors_Id[~related_I] == 0).all()


def test_what_is_held_out_changes_nothing() -> None:
    """The largest possible change: every validation and test item becomes another item."""
    part = random_part(11)
    held_out = np.ones(len(part.items_N), bool)
    for user, end in enumerate(part.train_end):
        held_out[part.offsets[user] : end] = False
    other = replace(part, items_N=np.where(held_out, (part.items_N + 7) % ITEMS, part.items_N).astype(np.int32))
    assert (other.items_N != part.items_N).sum() == held_out.sum() > 10
    first, second = (interaction_vectors(p, ITEMS, window=5, shift=1, dimensions=8) for p in (part, other))
    assert first.vectors_Id.tobytes() == second.vectors_Id.tobytes()
    in_training = replace(part, train_end=part.offsets[1:])
    third = interaction_vectors(in_training, ITEMS, window=5, shift=1, dimensions=8)
    assert first.vectors_Id.tobytes() != third.vectors_Id.tobytes()


def test_sequences_of_two_users_do_not_mix() -> None:
    """The last item of a user and the first of the next one are no pair; the order of users does not count."""
    part = TrainingPart(np.array([0, 1, 2, 3], np.int32), np.array([0, 2, 4]), np.array([2, 4]))
    assert pair_counts(part, 4, 5).toarray().tolist() == [[0, 5, 0, 0], [5, 0, 0, 0], [0, 0, 0, 5], [0, 0, 5, 0]]
    swapped = replace(part, items_N=np.array([2, 3, 0, 1], np.int32))
    assert (pair_counts(swapped, 4, 5) != pair_counts(part, 4, 5)).nnz == 0


def test_an_item_outside_all_kept_dimensions_is_zeros_and_not_rounding() -> None:
    """Two clusters of items without a common user: one dimension holds the denser cluster alone."""
    items_N = np.array([0, 1, 2, 3, 0, 2, 4, 1, 3, 4] * 3 + [5, 6], np.int32)
    part = TrainingPart(items_N, np.array([0, 30, 32]), np.array([30, 32]))
    vectors_Id = interaction_vectors(part, 8, window=3, shift=1, dimensions=1).vectors_Id
    lengths_I = np.linalg.norm(vectors_Id, axis=1)
    assert np.isin(lengths_I.round(5), [0, 1]).all()
    assert lengths_I[7] == 0
    assert 0 < np.count_nonzero(lengths_I) < 7


def test_a_log_that_relates_nothing_is_refused() -> None:
    part = TrainingPart(np.array([0, 1, 2], np.int32), np.array([0, 1, 2, 3]), np.array([1, 2, 3]))
    with pytest.raises(UserError, match="relate no item to another"):
        interaction_vectors(part, 3, window=5, shift=1, dimensions=8)
    part = random_part(3)
    with pytest.raises(UserError, match="relate no item to another") as caught:
        interaction_vectors(part, ITEMS, window=5, shift=1e9, dimensions=8)
    assert "quantize.interaction_shift (1e+09)" in caught.value.why


def test_counts_above_int32_do_not_overflow() -> None:
    counts = sparse.csr_array(np.array([[0, 2**40], [2**40, 0]]))
    assert shifted_ppmi(counts, 1).toarray() == pytest.approx(np.array([[0, log(2)], [log(2), 0]]))
