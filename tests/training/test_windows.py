"""Which windows an epoch holds, compared with slow loops over users, ends and starts."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import Splits
from pipeline.training.windows import Epochs, shuffled

lengths = st.lists(st.integers(0, 12), min_size=1, max_size=8)
examples = settings(max_examples=40)


def splits_of(counts: list[int], max_history: int) -> Splits:
    """Users with `counts` training interactions, each followed by two that are held out."""
    offsets = np.concatenate([[0], np.cumsum(np.array(counts) + 2)])
    fake = SimpleNamespace(offsets=offsets, train_end=offsets[:-1] + counts, max_history=max_history)
    return cast(Splits, fake)


def all_windows(splits: Splits) -> set[tuple[int, int]]:
    """Every (start, end) with at least one and at most max_history items before a training target."""
    found = set()
    for first, train_end in zip(splits.offsets, splits.train_end, strict=False):
        for end in range(first, train_end):
            for start in range(first, end):
                if end - start <= splits.max_history:
                    found.add((start, end))
    return found


def drawn(epochs: Epochs, epoch: int = 0) -> list[tuple[int, int]]:
    windows = epochs.take(epoch, 0, len(epochs))
    return list(zip(windows.starts_W.tolist(), windows.ends_W.tolist(), strict=True))


@examples
@given(lengths, st.integers(1, 6), st.integers(0, 3))
def test_all_holds_every_contiguous_window_exactly_once(counts: list[int], max_history: int, epoch: int) -> None:
    splits = splits_of(counts, max_history)
    assert Counter(drawn(Epochs(splits, "all", 7), epoch)) == Counter(all_windows(splits))


@examples
@given(lengths, st.integers(1, 6))
def test_prefixes_hold_every_end_once_with_the_longest_history_allowed(counts: list[int], max_history: int) -> None:
    splits = splits_of(counts, max_history)
    longest: dict[int, int] = {}
    for start, end in all_windows(splits):
        longest[end] = min(start, longest.get(end, start))
    assert Counter(drawn(Epochs(splits, "prefixes", 7))) == Counter((start, end) for end, start in longest.items())


@examples
@given(lengths, st.integers(1, 6), st.integers(0, 3))
def test_sequences_hold_every_item_after_a_users_first_once_as_a_target(
    counts: list[int], max_history: int, epoch: int
) -> None:
    splits = splits_of(counts, max_history)
    windows = drawn(Epochs(splits, "sequences", 7), epoch)
    assert set(windows) <= all_windows(splits)
    targets = Counter(item for start, end in windows for item in range(start + 1, end + 1))
    assert targets == Counter({end for _, end in all_windows(splits)})


@examples
@given(lengths, st.integers(1, 6), st.integers(0, 3))
def test_random_start_holds_every_end_once_with_an_admissible_start(
    counts: list[int], max_history: int, epoch: int
) -> None:
    splits = splits_of(counts, max_history)
    windows = drawn(Epochs(splits, "random_start", 7), epoch)
    assert set(windows) <= all_windows(splits)
    assert Counter(end for _, end in windows) == Counter({end for _, end in all_windows(splits)})


def test_random_starts_are_uniform_and_differ_between_epochs() -> None:
    epochs = Epochs(splits_of([6], 4), "random_start", seed=3)
    counts = Counter(window for index in range(3000) for window in drawn(epochs, index))
    for end in range(1, 6):
        admissible = min(end, 4)
        for start in range(end - admissible, end):
            assert counts[(start, end)] == pytest.approx(3000 / admissible, abs=5 * np.sqrt(3000 / admissible))


@examples
@given(lengths, st.sampled_from(["random_start", "prefixes", "all", "sequences"]), st.integers(0, 5), st.integers(1, 9))
def test_any_slice_of_an_epoch_is_the_same_alone(counts: list[int], rule: Any, first: int, size: int) -> None:
    epochs = Epochs(splits_of(counts, 4), rule, 1)
    part = epochs.take(2, first, first + size)
    assert list(zip(part.starts_W, part.ends_W, strict=True)) == drawn(epochs, 2)[first : first + size]


def test_no_window_touches_a_held_out_position() -> None:
    splits = splits_of([5, 0, 9, 1], 3)
    held = {int(end) + i for end in splits.train_end for i in (0, 1)}
    for rule in ("random_start", "prefixes", "all", "sequences"):
        for start, end in drawn(Epochs(splits, rule, 0)):
            assert not held & set(range(start, end + 1))


def test_an_epoch_over_hundreds_of_millions_of_windows_is_drawn_by_the_slice() -> None:
    epochs = Epochs(splits_of([150] * 140_000, 20), "all", 0)
    assert len(epochs) == 140_000 * (20 * 21 // 2 + (149 - 20) * 20)
    windows = epochs.take(0, len(epochs) - 1000, len(epochs))
    assert len(windows) == 1000
    assert windows.lengths_W.min() >= 1
    assert windows.lengths_W.max() <= 20


@examples
@given(st.integers(1, 300), st.integers(0, 10**6))
def test_a_shuffle_is_a_bijection(size: int, seed: int) -> None:
    epochs = Epochs(splits_of([size + 1], 1), "prefixes", seed)
    assert sorted(end for _, end in drawn(epochs)) == list(range(1, size + 1))


def test_shuffles_are_fair() -> None:
    """Each window is equally likely at each position, and so is each pair of neighbours (chi-square, 5 sigma)."""
    epochs, size, draws = Epochs(splits_of([8], 1), "prefixes", 0), 7, 4000
    orders = np.array([[end - 1 for _, end in drawn(epochs, index)] for index in range(draws)])
    hits = np.zeros((size, size))
    np.add.at(hits, (np.arange(size), orders), 1)
    assert ((hits - draws / size) ** 2 / (draws / size)).sum() < 36 + 5 * np.sqrt(2 * 36)
    pairs = Counter(zip(orders[:, 0], orders[:, 1], strict=True))
    expected = draws / (size * (size - 1))
    assert sum((pairs[a, b] - expected) ** 2 / expected for a in range(size) for b in range(size) if a != b) < 90


def test_equal_seeds_give_equal_epochs_and_other_seeds_do_not() -> None:
    splits = splits_of([12] * 20, 6)
    first, second, other = (drawn(Epochs(splits, "random_start", seed)) for seed in (5, 5, 6))
    assert first == second
    assert first != other


def test_shuffled_takes_positions_in_any_order() -> None:
    def hashed(x_W: np.ndarray) -> np.ndarray:
        return x_W * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(20)

    whole = shuffled(np.arange(90, dtype=np.uint64), 90, hashed)
    assert shuffled(np.array([5, 3], np.uint64), 90, hashed).tolist() == [whole[5], whole[3]]
