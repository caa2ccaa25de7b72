"""Rank by counting alone, without any learning: popularity and item-to-item co-occurrence, from models/counting.

Both count training interactions only, see the same histories as the model, and rank the whole catalogue, so a table
that shows them beside the model says what the model has learned. They are meant to be strong. Which weights and which
rules help was decided on the validation part of Amazon Beauty (never on test), where the recency weight and dropping
the history's items matter most: without both, recall at 10 falls from .095 to .069 there.

Co-occurrence counts pairs in both directions alike. By direction, a pair that came in the other order counts less, by
the weight that is best on validation. On Beauty that helps only on targets that share a day with the item before,
where the order is an artefact of the raw file; on all others it is worse. So both stand in every table.

A repeat is rare in most logs, and a model learns that by itself. Counting is given the same chance: recall at 10 on the
validation targets decides whether the items of the history leave its ranking (`filter_seen` leaves no choice).

Shape legend: I items, B users of one batch, U users; local: E entries of a sparse matrix, S entries of the histories, J
items of a batch's histories.

Items appear as columns, in the order of their popularity, so that "more popular first" is "smaller column first".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from pipeline.artifacts import Splits, fingerprint, read_json, read_tensors, write_json
from pipeline.errors import UserError
from pipeline.large_files import write_arrays
from pipeline.manifest import seal
from pipeline.metrics import recall_at
from pipeline.views.pairs import Pairs, count_pairs, popularity_columns, training_counts

COUNTING = Path("models/counting")
TENSORS = "neighbours.safetensors"
FACTS = "counting.json"
BATCH = 128  # users scored at once: their entries stay in the processor's cache
BACKWARD = (0.0, 0.25, 0.5, 1.0)  # weights that are tried for pairs in the other order
WHOLE_PAIRS = 2**22  # a longer list of pairs is read row by row
VALID_USERS = 50_000  # on whom weights and rules are chosen; of more users, evenly spaced ones
DIGITS = 12  # scores are rounded to them: sums that are equal on paper must tie, whatever the order of adding
RULES = {True: "seen_dropped", False: "seen_included"}


@dataclass(frozen=True)
class Counting:
    """`Counting` holds models/counting: what the counting baselines need of the log.

    counts_I: int64, the training interactions of each item. pairs: the neighbours of each item. facts: counting.json,
    with window, neighbours (the bound), pairs, pairs_left_out, the content hash of the splits, and what validation
    chose: whether seen items leave the ranking (`drop_seen`, by baseline), and by each rule the weight of a pair in the
    other order (`backward`).
    """

    counts_I: np.ndarray
    pairs: Pairs
    facts: dict[str, Any]

    def write(self, folder: Path = COUNTING) -> None:
        """Write the folder; equal content gives equal bytes."""
        pairs = self.pairs
        tensors = {
            "counts": self.counts_I,
            "starts": pairs.starts,
            "items": pairs.items_E,
            "after": pairs.after_E,
            "before": pairs.before_E,
        }
        write_arrays(folder / TENSORS, tensors)
        write_json(folder / FACTS, self.facts)
        seal(folder, "count")

    @classmethod
    def read(cls, folder: Path = COUNTING) -> "Counting":
        """Read the folder, the pairs mapped into memory. Raises UserError where a file is missing or damaged."""
        facts = read_json(folder / FACTS, splits=str, drop_seen=dict, backward=dict, pairs_left_out=int)
        mapped = read_tensors(folder / TENSORS, mapped=True)
        tensors = {name: np.asarray(array) for name, array in mapped.items()}  # slices of a memmap are slow
        try:
            starts, items_E, after_E, before_E = (tensors[name] for name in ("starts", "items", "after", "before"))
            counts_I = tensors["counts"]
            fits = len(starts) == len(counts_I) + 1 and len(items_E) == len(after_E) == len(before_E) == starts[-1]
            if not fits or (len(items_E) and not 0 <= items_E.min() <= items_E.max() < len(counts_I)):
                raise ValueError("its tensors do not fit each other")
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(
                f"{folder / TENSORS} cannot be read: {error}",
                "the file is damaged, or another version wrote it",
                "run `dvc checkout`, or `dvc repro` to make it again",
            ) from None
        return cls(counts_I, Pairs(starts, items_E, after_E, before_E, facts["pairs_left_out"]), facts)

    @classmethod
    def of(cls, folder: Path, splits: Path) -> "Counting":
        """Read the folder, and check that these splits were counted.

        Raises:
            UserError: other splits were counted, or a file is missing or damaged.
        """
        counted = cls.read(folder)
        if counted.facts["splits"] != fingerprint(splits):
            raise UserError(
                f"{folder} was counted on other splits than those in {splits}",
                "held-out items may be among the counted ones, so that the baselines would mean nothing",
                "run `dvc repro`, or `python -m pipeline count`",
            )
        return counted

    @cached_property
    def column_I(self) -> np.ndarray:
        """Give each item its column, int64: 0 for the item with most training interactions; ties by item id."""
        return popularity_columns(self.counts_I)

    @cached_property
    def item_I(self) -> np.ndarray:
        """Give each column its item, int64."""
        # Columns 2 0 1 of items 0 1 2 -> items 1 2 0
        return np.argsort(self.column_I)

    def scale(self, items_J: np.ndarray) -> np.ndarray:
        """Return what the pairs of each of these items are multiplied with, float64 [J].

        It is 1 over the square root of the item's count, since a rare item in the history says more than one everybody
        has.
        """
        scale_J: np.ndarray = 1 / np.sqrt(np.maximum(self.counts_I[items_J], 1))
        return scale_J

    def scores(self, history_BI: sparse.csr_array) -> sparse.csr_array:
        """Return the product of histories and `together`, complex128 [B, I], the columns of a row in no order.

        The products of a user are added up in the order of `history_BI`. A long list of pairs is never made a matrix as
        a whole: only the rows of the histories' items are.
        """
        if len(self.pairs.items_E) <= WHOLE_PAIRS:
            row_S, together_JI = self.item_I[history_BI.indices], self._together_II
        else:
            columns_J, row_S = np.unique(history_BI.indices, return_inverse=True)
            together_JI = self.together(self.item_I[columns_J])
        shape = (history_BI.shape[0], together_JI.shape[0])
        history_BJ = sparse.csr_array((history_BI.data, row_S, history_BI.indptr), shape=shape)
        return sparse.csr_array(history_BJ @ together_JI)

    @cached_property
    def _together_II(self) -> sparse.csr_array:
        return self.together(np.arange(len(self.counts_I)))

    def together(self, items_J: np.ndarray) -> sparse.csr_array:
        """Say how much each of these items speaks for that of a column, complex128 [J, I]; columns as in `column_I`.

        The real part is for items that came after that of the row, the imaginary part for those that came before.
        """
        entries, offsets = self.pairs.rows(items_J)
        scale_E = np.repeat(self.scale(items_J), np.diff(offsets))
        weights_E = np.empty(len(entries), np.complex128)
        np.multiply(scale_E, self.pairs.after_E[entries], out=weights_E.real)
        np.multiply(scale_E, self.pairs.before_E[entries], out=weights_E.imag)
        columns_E = self.column_I.astype(np.int32)[self.pairs.items_E[entries]]
        return sparse.csr_array((weights_E, columns_E, offsets), shape=(len(items_J), len(self.counts_I)))


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Baselines hold the rank of each test target among all items, in user order.

    Ranks are 1-based, int64; 0 where the target was dropped as seen.
    """

    popularity_U: np.ndarray
    cooccurrence_U: np.ndarray
    directed_U: np.ndarray  # co-occurrence by direction
    drop_seen: dict[str, bool]  # by the names of BASELINES: whether the items of the history left the ranking
    backward: float  # weight of a pair in the other order, chosen on validation
    cooccurrence_by_rule: dict[bool, np.ndarray]  # the ranks of co-occurrence with seen items dropped, and with them


def count_and_choose(
    splits: Splits, *, window: int, neighbours: int, name: str = "", folder: Path | None = None
) -> Counting:
    """Count the training part, and choose on validation what `Counting.facts` says.

    Args:
        window: two items of a user co-occur when at most this many steps apart.
        neighbours: of each item at most so many are listed.
        name: content hash of the splits.
        folder: where the list of pairs lies (`count_pairs`).
    """
    pairs = count_pairs(splits, window=window, neighbours=neighbours, folder=folder)
    counted = Counting(training_counts(splits), pairs, {})
    users, _ = splits.targets("valid")
    some = evenly(len(users))
    ranks = ranks_by_counting(counted, splits, "valid", (None, *BACKWARD), some)
    recalls = {key: recall_at(ranks_U, 10) for key, ranks_U in ranks.items()}
    drop_seen = {
        baseline: bool(recalls[weight, True] >= recalls[weight, False])
        for baseline, weight in (("popularity", None), ("cooccurrence", 1.0))
    }
    # Of equal recalls the largest weight: a direction has to show that it helps.
    backward = {
        word: max(BACKWARD, key=lambda weight, rule=rule: (recalls[weight, rule], weight))  # type: ignore[misc]
        for rule, word in RULES.items()
    }
    facts = {
        "splits": name,
        "window": window,
        "neighbours": neighbours,
        "pairs": len(pairs.items_E),
        "pairs_left_out": pairs.left_out,
        "drop_seen": drop_seen,
        "backward": backward,
        "valid_users": len(users[some]),
        "valid_recall_at_10": {
            word: {_label(weight): recalls[weight, rule] for weight in (None, *BACKWARD)}
            for rule, word in RULES.items()
        },
    }
    return Counting(counted.counts_I, pairs, facts)


def evenly(users: int) -> np.ndarray:
    """Return the numbers 0 .. users - 1, or VALID_USERS evenly spaced ones of more, int64."""
    return np.arange(users) if users <= VALID_USERS else np.linspace(0, users - 1, VALID_USERS).astype(np.int64)


def _label(weight: float | None) -> str:
    return "popularity" if weight is None else f"backward {weight:g}"


def baselines(counted: Counting, splits: Splits, *, filter_seen: bool = False) -> Baselines:
    """Rank every test target by popularity, by co-occurrence, and by co-occurrence with a direction.

    Args:
        filter_seen: items of the history leave all rankings; otherwise they leave where that helps on validation.
    """
    drop_seen = {name: filter_seen or bool(drops) for name, drops in counted.facts["drop_seen"].items()}
    drop_seen["directed"] = drop_seen["cooccurrence"]
    backward = float(counted.facts["backward"][RULES[drop_seen["directed"]]])
    ranks = ranks_by_counting(counted, splits, "test", (None, *{1.0, backward}))
    return Baselines(
        popularity_U=ranks[None, drop_seen["popularity"]],
        cooccurrence_U=ranks[1.0, drop_seen["cooccurrence"]],
        directed_U=ranks[backward, drop_seen["directed"]],
        drop_seen=drop_seen,
        backward=backward,
        cooccurrence_by_rule={rule: ranks[1.0, rule] for rule in (True, False)},
    )


def ranks_by_counting(
    counted: Counting,
    splits: Splits,
    part: str,
    weights: Sequence[float | None],
    users: np.ndarray | slice = slice(None),
) -> dict[tuple[float | None, bool], np.ndarray]:
    """Return the rank of each target of `part` by each weight and each rule for seen items, int64 [U].

    An item's score is the sum over the history of `together`, the k-th most recent item weighted by 1 / k; equal scores
    by popularity. Nothing here is dense in the catalogue: only items that co-occur with the history are touched.

    Args:
        weights: of pairs in the other order; None: popularity alone.
        users: rows of `splits.targets(part)`.

    Returns:
        (weight, whether seen items are dropped) -> ranks, 1-based; 0 for a target that is dropped as seen.
    """
    _, positions_U = splits.targets(part)
    positions_U = positions_U[users]
    ranks = {(weight, rule): np.zeros(len(positions_U), np.int64) for weight in weights for rule in (True, False)}
    for start in range(0, len(positions_U), BATCH):
        rows = slice(start, start + BATCH)
        batch = _Batch(counted, splits, positions_U[rows])
        for weight in dict.fromkeys(weights):
            for rule, ranks_B in batch.ranks(weight).items():
                ranks[weight, rule][rows] = ranks_B
    return ranks


class _Batch:
    """A batch holds the scored items of some users: entries by user, those of a user in no order.

    An entry is an item that co-occurs with an item of the history. The items of the histories are few beside the
    entries: their scores are found once, so that dropping them costs no second look at all entries.
    """

    def __init__(self, counted: Counting, splits: Splits, positions_B: np.ndarray):
        index, offsets = splits.history_index(positions_B)
        items_M, column_I = np.asarray(splits.items_N), counted.column_I
        history_BI = recency_weights(column_I[items_M[index]], offsets, len(column_I))
        scores_BI = counted.scores(history_BI)
        self.users = len(positions_B)
        self.targets_B = column_I[items_M[positions_B]]
        self.starts, columns_E = scores_BI.indptr, scores_BI.indices
        self.after_E, self.before_E = scores_BI.data.real.copy(), scores_BI.data.imag.copy()
        target_E = self._of_entries(self.targets_B.astype(columns_E.dtype))
        self.earlier_E = columns_E < target_E  # in a column before the target's
        self.row_S = np.repeat(np.arange(self.users), np.diff(history_BI.indptr))
        target_S = self.targets_B[self.row_S]
        self.earlier_S = history_BI.indices < target_S
        self.target_seen_B = self._per_user(self.row_S[history_BI.indices == target_S]) > 0
        # -1 where an item is no entry.
        self.target_at_B = np.full(self.users, -1)
        found = np.flatnonzero(columns_E == target_E)
        self.target_at_B[np.searchsorted(self.starts, found, side="right") - 1] = found
        self.seen_at_S = _find(scores_BI, history_BI)

    def ranks(self, weight: float | None) -> dict[bool, np.ndarray]:
        """Return 1 + how many items come before the target, int64 [B], by whether seen items are dropped.

        Items come before the target with a higher score, or with an equal score in a smaller column. With 6 items,
        scores of a row 0 .5 0 .2 0 0: target 3 has rank 2; target 2 has rank 4, behind the columns 1, 3 and 0. Without
        the seen items the rank is that of all items less the seen ones before the target, and 0 where the target is
        itself a seen one.
        """
        if weight is None:
            ranks_B = 1 + self.targets_B
            score_B, score_S = np.zeros(self.users), np.zeros(len(self.row_S))
        else:
            score_E = (self.after_E + weight * self.before_E).round(DIGITS)
            padded_E = np.append(score_E, 0.0)  # -1, for no entry, is the appended 0
            score_B, score_S = padded_E[self.target_at_B], padded_E[self.seen_at_S]
            ranks_B = 1 + self._before(score_E, score_B)
        seen_score_S = score_B[self.row_S]
        ahead_S = (score_S > seen_score_S) | ((score_S == seen_score_S) & self.earlier_S)
        dropped_B = np.where(self.target_seen_B, 0, ranks_B - self._per_user(self.row_S[ahead_S]))
        return {True: dropped_B, False: ranks_B}

    def _before(self, score_E: np.ndarray, score_B: np.ndarray) -> np.ndarray:
        """Return how many items come before each user's target, which has the score score_B, int64 [B]."""
        target_E = self._of_entries(score_B)
        ahead_E = score_E == target_E
        ahead_E &= self.earlier_E
        ahead_E |= score_E > target_E
        # Items that are no entries score 0, as some entries may. Before a target of score 0 are all columns before its
        # own, and of the entries that score more those in later columns.
        zero_B = score_B == 0
        higher_B = self._count(ahead_E)
        if not zero_B.any():
            return higher_B
        earlier_entries_B = self._count(self.earlier_E)
        return np.where(zero_B, higher_B + self.targets_B - earlier_entries_B, higher_B)

    def _of_entries(self, values_B: np.ndarray) -> np.ndarray:
        """Return the value of its user for each entry, [E]."""
        return np.repeat(values_B, np.diff(self.starts))

    def _count(self, which_E: np.ndarray) -> np.ndarray:
        """Return how many entries of each user are among these, int64 [B]."""
        found = np.flatnonzero(which_E)
        return np.diff(np.searchsorted(found, self.starts))

    def _per_user(self, rows: np.ndarray) -> np.ndarray:
        """Return how often each user stands in `rows`, int64 [B]."""
        return np.bincount(rows, minlength=self.users)


def recency_weights(columns: np.ndarray, offsets: np.ndarray, items: int) -> sparse.csr_array:
    """Return [B, I]: 1 / k at the k-th most recent item of each history; an item that repeats has the sum.

    Histories 4 2 4 and 1 -> row 0 has 1 + 1/3 at 4 and 1/2 at 2; row 1 has 1 at 1
    """
    ends = np.repeat(offsets[1:], np.diff(offsets))
    weights = 1.0 / (ends - np.arange(len(columns)))
    history_BI = sparse.csr_array((weights, columns, offsets), shape=(len(offsets) - 1, items))
    history_BI.sum_duplicates()
    return history_BI


def _find(entries_BI: sparse.csr_array, wanted_BI: sparse.csr_array) -> np.ndarray:
    """Return where each entry of `wanted_BI` is in the data of `entries_BI`, -1 where it is missing."""
    at = np.full(len(wanted_BI.indices), -1)
    slot_I = np.zeros(entries_BI.shape[1], np.int64)  # of each column its last entry, maybe of an earlier row
    for row in range(entries_BI.shape[0]):
        start, stop = entries_BI.indptr[row : row + 2]
        wanted = slice(wanted_BI.indptr[row], wanted_BI.indptr[row + 1])
        if start == stop or wanted.start == wanted.stop:
            continue
        columns = wanted_BI.indices[wanted]
        slot_I[entries_BI.indices[start:stop]] = np.arange(start, stop)
        slots = slot_I[columns]
        at[wanted] = np.where((slots >= start) & (entries_BI.indices[slots] == columns), slots, -1)
    return at
