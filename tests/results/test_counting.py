"""Counting baselines equal a slow reference, see training only, and are as strong as the anchor says."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import Splits
from pipeline.metrics import recall_at
from pipeline.results.counting import Counts, baselines, cooccurrence, popularity_columns, rank_by_counts

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ITEMS, MAX_HISTORY = 12, 4


def splits_of(sequences: list[list[int]], items: int = ITEMS) -> Splits:
    """Leave-one-out over sequences of at least three items."""
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sequences])])
    ends = offsets[1:]
    return Splits(
        items_N=np.concatenate(sequences).astype(np.int32),
        timestamps_N=np.arange(offsets[-1]),
        offsets=offsets,
        train_end=ends - 2,
        valid_target=ends - 2,
        test_target=ends - 1,
        summary={"max_history": MAX_HISTORY, "items": items},
    )


SEQUENCES = st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=3, max_size=9), min_size=1, max_size=8)


def slow_scores(sequences: list[list[int]], history: list[int], window: int, backward: float = 1) -> list[float]:
    """The score of every item, as the docstrings define it."""
    counts = Counter(item for s in sequences for item in s[:-2])
    together: dict[tuple[int, int], float] = defaultdict(float)
    for s in sequences:
        training = s[:-2]
        for i, a in enumerate(training):
            for j, b in enumerate(training):
                if a != b and 1 <= abs(i - j) <= window:
                    together[a, b] += (1 if i < j else backward) / abs(i - j)
    return [
        sum(together[h, item] / max(counts[h], 1) ** 0.5 / (k + 1) for k, h in enumerate(reversed(history)))
        for item in range(ITEMS)
    ]


def slow_rank(scores: list[float], popularity: list[int], target: int, dropped: set[int]) -> int:
    if target in dropped:
        return 0
    keys = [(-round(scores[item], 9), -popularity[item], item) for item in range(ITEMS)]
    return 1 + sum(keys[item] < keys[target] for item in range(ITEMS) if item not in dropped)


@given(SEQUENCES, st.integers(1, 4), st.booleans(), st.sampled_from([0.0, 0.25, 1.0]))
@settings(max_examples=60, deadline=None)
def test_ranks_equal_the_slow_reference(
    sequences: list[list[int]], window: int, drop_seen: bool, backward: float
) -> None:
    splits = splits_of(sequences)
    popularity = np.bincount([i for s in sequences for i in s[:-2]], minlength=ITEMS).tolist()
    column_I = popularity_columns(splits)
    order_I = np.argsort(column_I)
    together = cooccurrence(splits, window, backward)
    counts = Counts(column_I, together[order_I][:, order_I])
    for part, cut in (("test", -1), ("valid", -2)):
        found = rank_by_counts(splits, part, counts, drop_seen=drop_seen)
        for rank, s in zip(found, sequences, strict=True):
            history = s[:cut][-MAX_HISTORY:]
            dropped = set(history) if drop_seen else set()
            assert rank == slow_rank(slow_scores(sequences, history, window, backward), popularity, s[cut], dropped)


@given(SEQUENCES, st.booleans())
@settings(max_examples=30, deadline=None)
def test_popularity_ranks_by_training_counts_then_item_id(sequences: list[list[int]], filter_seen: bool) -> None:
    found = baselines(splits_of(sequences), window=2, filter_seen=filter_seen)
    popularity = np.bincount([i for s in sequences for i in s[:-2]], minlength=ITEMS).tolist()
    for rank, s in zip(found.popularity_U, sequences, strict=True):
        dropped = set(s[:-1][-MAX_HISTORY:]) if found.drop_seen["popularity"] else set()
        assert rank == slow_rank([0.0] * ITEMS, popularity, s[-1], dropped)
    assert found.drop_seen["popularity"] or not filter_seen


def test_held_out_items_are_never_counted() -> None:
    splits = splits_of([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    touched = set(np.flatnonzero(cooccurrence(splits, 3).sum(0)))
    assert touched == {0, 1, 2, 5, 6, 7}


def test_seen_items_leave_the_ranking_only_where_that_helps_on_validation() -> None:
    again = [[user % 6, user % 6, user % 6, user % 6, user % 6] for user in range(12)]  # the same item for ever
    never = [[(user + step) % ITEMS for step in range(6)] for user in range(24)]
    assert not baselines(splits_of(again), window=2).drop_seen["popularity"]
    assert baselines(splits_of(never), window=2).drop_seen["cooccurrence"]
    assert baselines(splits_of(again), window=2, filter_seen=True).drop_seen == {
        "popularity": True,
        "cooccurrence": True,
        "directed": True,
    }


def test_the_weight_of_the_other_direction_is_chosen_on_validation() -> None:
    # Fifteen items lead to item 15, more often than 15 leads to 16: only a direction finds 16 behind 15.
    led = [[first, 15, 16, 17] for first in range(15) for _ in range(3)] + [[15, 16, 17, 0]] * 2
    found = baselines(splits_of(led, items=18), window=2)
    assert found.backward == 0.5  # the largest that finds it
    assert found.drop_seen["directed"] == found.drop_seen["cooccurrence"]
    alike = [[1, 2, 1, 2, 1, 2], [3, 4, 3, 4, 3, 4]] * 6
    found = baselines(splits_of(alike), window=2)
    assert found.backward == 1
    np.testing.assert_array_equal(found.directed_U, found.cooccurrence_U)


def test_a_user_without_history_is_ranked_by_popularity() -> None:
    splits = splits_of([[3, 3, 3, 1, 2], [3, 4, 4, 1, 2]])
    alone = Splits(
        items_N=np.append(splits.items_N, 4).astype(np.int32),
        timestamps_N=np.arange(11),
        offsets=np.append(splits.offsets, 11),
        train_end=np.append(splits.train_end, 10),
        valid_target=np.append(splits.valid_target, -1),
        test_target=np.append(splits.test_target, 10),
        summary=splits.summary,
    )
    found = baselines(alone, window=2)
    assert (found.popularity_U[-1], found.cooccurrence_U[-1]) == (2, 2)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
def test_counting_alone_is_strong_on_amazon_beauty() -> None:
    log = pd.read_csv(SHARED / "amazon-beauty" / "interactions.csv.gz")
    log = log.sort_values(["user", "unix_time"], kind="stable")
    items, catalogue = pd.factorize(log["asin"])
    ends = np.cumsum(log.groupby("user", sort=True).size().to_numpy())
    splits = Splits(
        items_N=items.astype(np.int32),
        timestamps_N=log["unix_time"].to_numpy(),
        offsets=np.concatenate([[0], ends]),
        train_end=ends - 2,
        valid_target=ends - 2,
        test_target=ends - 1,
        summary={"max_history": 20, "items": len(catalogue)},
    )
    found = baselines(splits, window=3)
    assert recall_at(found.popularity_U, 10) == pytest.approx(0.0114, abs=0.0002)
    assert 0.0702 < recall_at(found.cooccurrence_U, 10) < 0.08
