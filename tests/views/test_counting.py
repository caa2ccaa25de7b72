"""Counting baselines equal a slow reference, see training only, and are as strong as the anchor says."""

import tracemalloc
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from pipeline.artifacts import Splits, write_tensors
from pipeline.errors import UserError
from pipeline.metrics import recall_at
from pipeline.views import counting
from pipeline.views import pairs as counting_pairs
from pipeline.views.counting import BACKWARD, Baselines, Counting, count_and_choose, ranks_by_counting
from pipeline.views.counting import baselines as ranked
from pipeline.views.pairs import count_pairs

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


def baselines(splits: Splits, *, window: int, filter_seen: bool = False) -> Baselines:
    """What evaluate computes of models/counting."""
    return ranked(count_and_choose(splits, window=window, neighbours=1000), splits, filter_seen=filter_seen)


SEQUENCES = st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=3, max_size=9), min_size=1, max_size=8)


def slow_together(sequences: list[list[int]], window: int, backward: float) -> dict[tuple[int, int], float]:
    """How often pairs come together: from an item to a later one, and with the weight to an earlier one."""
    together: dict[tuple[int, int], float] = defaultdict(float)
    for s in sequences:
        training = s[:-2]
        for i, a in enumerate(training):
            for j, b in enumerate(training):
                if a != b and 1 <= abs(i - j) <= window:
                    together[a, b] += (1 if i < j else backward) / abs(i - j)
    return together


def slow_scores(
    sequences: list[list[int]], history: list[int], window: int, backward: float = 1, neighbours: int = ITEMS
) -> list[float]:
    """The score of every item, as the docstrings define it."""
    counts = Counter(item for s in sequences for item in s[:-2])
    both = slow_together(sequences, window, 1)
    together = slow_together(sequences, window, backward)
    for item in range(ITEMS):
        order = sorted((-round(both[item, other], 9), -counts[other], other) for other in range(ITEMS))
        for _, _, other in order[neighbours:]:
            together[item, other] = 0
    return [
        sum(together[h, item] / max(counts[h], 1) ** 0.5 / (k + 1) for k, h in enumerate(reversed(history)))
        for item in range(ITEMS)
    ]


def slow_rank(scores: list[float], popularity: list[int], target: int, dropped: set[int]) -> int:
    if target in dropped:
        return 0
    keys = [(-round(scores[item], 9), -popularity[item], item) for item in range(ITEMS)]
    return 1 + sum(keys[item] < keys[target] for item in range(ITEMS) if item not in dropped)


@given(SEQUENCES, st.integers(1, 4), st.integers(1, ITEMS))
@settings(max_examples=60)
def test_ranks_equal_the_slow_reference(sequences: list[list[int]], window: int, neighbours: int) -> None:
    splits = splits_of(sequences)
    popularity = np.bincount([i for s in sequences for i in s[:-2]], minlength=ITEMS).tolist()
    counted = count_and_choose(splits, window=window, neighbours=neighbours)
    for part, cut in (("test", -1), ("valid", -2)):
        for (weight, drop_seen), ranks in ranks_by_counting(counted, splits, part, (None, *BACKWARD)).items():
            for rank, s in zip(ranks, sequences, strict=True):
                history = s[:cut][-MAX_HISTORY:]
                dropped = set(history) if drop_seen else set()
                scores = [0.0] * ITEMS
                if weight is not None:
                    scores = slow_scores(sequences, history, window, weight, neighbours)
                assert rank == slow_rank(scores, popularity, s[cut], dropped)


def test_ranks_of_several_batches_equal_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    splits = splits_of([rng.integers(0, ITEMS, rng.integers(3, 9)).tolist() for _ in range(50)])
    counted = count_and_choose(splits, window=2, neighbours=4)
    whole = ranks_by_counting(counted, splits, "test", (None, *BACKWARD))
    monkeypatch.setattr(counting, "BATCH", 7)
    for pairs in (counting.WHOLE_PAIRS, 0):
        monkeypatch.setattr(counting, "WHOLE_PAIRS", pairs)
        for key, ranks in ranks_by_counting(counted, splits, "test", (None, *BACKWARD)).items():
            np.testing.assert_array_equal(ranks, whole[key])


@given(SEQUENCES, st.integers(1, 4))
@settings(max_examples=30)
def test_the_neighbours_are_the_pairs_of_the_training_part(sequences: list[list[int]], window: int) -> None:
    pairs = count_pairs(splits_of(sequences), window=window, neighbours=ITEMS)
    assert pairs.left_out == 0
    after, both = (slow_together(sequences, window, backward) for backward in (0, 1))
    rows = np.repeat(np.arange(ITEMS), np.diff(pairs.starts)).tolist()
    assert sorted(zip(rows, pairs.items_E.tolist(), strict=True)) == sorted(pair for pair, n in both.items() if n)
    for row, item, came_after, came_before in zip(rows, pairs.items_E, pairs.after_E, pairs.before_E, strict=True):
        assert came_after == pytest.approx(after[row, item])
        assert came_before == pytest.approx(both[row, item] - after[row, item])


@given(SEQUENCES, st.booleans())
@settings(max_examples=30)
def test_popularity_ranks_by_training_counts_then_item_id(sequences: list[list[int]], filter_seen: bool) -> None:
    found = baselines(splits_of(sequences), window=2, filter_seen=filter_seen)
    popularity = np.bincount([i for s in sequences for i in s[:-2]], minlength=ITEMS).tolist()
    for rank, s in zip(found.popularity_U, sequences, strict=True):
        dropped = set(s[:-1][-MAX_HISTORY:]) if found.drop_seen["popularity"] else set()
        assert rank == slow_rank([0.0] * ITEMS, popularity, s[-1], dropped)
    assert found.drop_seen["popularity"] or not filter_seen


@pytest.mark.parametrize("pairs", [1, 7, 40])
def test_pairs_of_several_blocks_equal_those_of_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pairs: int
) -> None:
    rng = np.random.default_rng(pairs)
    splits = splits_of([rng.integers(0, ITEMS, rng.integers(3, 9)).tolist() for _ in range(30)], items=ITEMS + 3)
    whole = count_pairs(splits, window=3, neighbours=4)
    monkeypatch.setattr(counting_pairs, "BLOCK_PAIRS", pairs)
    monkeypatch.setattr(counting_pairs, "CHUNK", 2 * pairs)
    monkeypatch.setattr(counting_pairs, "PORTION", 3 * pairs)
    parts = counting_pairs._blocks(np.bincount(splits.items_N, minlength=ITEMS + 3), 3)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert len(parts) > 1
    for name, array in vars(count_pairs(splits, window=3, neighbours=4, folder=tmp_path)).items():
        np.testing.assert_array_equal(array, getattr(whole, name))
    assert whole.left_out
    assert not list(tmp_path.iterdir())  # the list lies in files without a name


def test_the_heaviest_neighbours_are_those_of_a_sort_of_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights tie often, rows have any length, and few slots are compared at once."""
    rng = np.random.default_rng(1)
    columns = 60
    dense_RI = rng.integers(0, 4, (40, columns)) * (rng.random((40, columns)) < rng.random((40, 1)))
    both = sparse.csr_array(dense_RI / 3 + 1j * (dense_RI > 2))
    column_I = rng.permutation(columns)
    for neighbours, portion in ((1, 2**20), (7, 2**20), (7, 50), (30, 400), (60, 400)):
        monkeypatch.setattr(counting_pairs, "PORTION", portion)
        stays_E = counting_pairs._heaviest(both, column_I, neighbours)
        for row in range(40):
            entries = slice(both.indptr[row], both.indptr[row + 1])
            weights = (both.data[entries].real + both.data[entries].imag).round(9)
            order = np.lexsort((column_I[both.indices[entries]], -weights))
            assert set(np.flatnonzero(stays_E[entries])) == set(order[:neighbours])


def test_counting_holds_one_block_whatever_the_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of all neighbours has more than twice the bytes of what is allocated at most, which does not grow."""
    rng = np.random.default_rng(2)
    splits = splits_of(rng.integers(0, 3000, (2000, 22)).tolist(), items=3000)
    monkeypatch.setattr(counting_pairs, "BLOCK_PAIRS", 5000)
    most = []
    for neighbours in (5, 3000):
        tracemalloc.start()
        pairs = count_pairs(splits, window=3, neighbours=neighbours, folder=tmp_path)
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(pairs.items_E) * 20 > 2 * most[1]
    assert most[1] < 1.2 * most[0]


def test_held_out_items_are_never_counted() -> None:
    splits = splits_of([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    assert set(count_pairs(splits, window=3, neighbours=9).items_E) == {0, 1, 2, 5, 6, 7}


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


def test_of_many_neighbours_the_heaviest_are_listed_and_of_equal_ones_the_popular() -> None:
    # Item 0 comes before 1 twice and before 2, 3 and 4 once; 4 is the most popular of those.
    splits = splits_of([[0, 1, 9, 9], [0, 1, 9, 9], [0, 2, 9, 9], [0, 3, 9, 9], [0, 4, 9, 9], [4, 9, 9], [2, 4, 9, 9]])
    pairs = count_pairs(splits, window=1, neighbours=2)
    assert pairs.items_E[pairs.starts[0] : pairs.starts[1]].tolist() == [1, 4]
    assert pairs.left_out == 2


def test_the_folder_is_read_as_it_was_written_and_damage_is_named(tmp_path: Path) -> None:
    splits = splits_of([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [1, 2, 3, 4]])
    counted = count_and_choose(splits, window=2, neighbours=3, name="splits")
    counted.write(tmp_path)
    again = Counting.read(tmp_path)
    assert again.facts == counted.facts
    np.testing.assert_array_equal(again.counts_I, counted.counts_I)
    for name, array in vars(counted.pairs).items():
        np.testing.assert_array_equal(getattr(again.pairs, name), array)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    counted.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "manifest.json").unlink()
    wrong = {"counts": counted.counts_I[:-1], "starts": counted.pairs.starts}
    names = {"items": counted.pairs.items_E, "after": counted.pairs.after_E, "before": counted.pairs.before_E}
    for tensors in ({**wrong, **names}, wrong):
        write_tensors(tmp_path / "neighbours.safetensors", tensors)
        with pytest.raises(UserError, match=r"neighbours\.safetensors cannot be read"):
            Counting.read(tmp_path)


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
