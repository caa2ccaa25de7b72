"""Enumerate the (history, target) windows of an epoch over the training interactions, in random order.

No stream of random numbers is drawn from: the position of a window in its epoch and its random start are hashes of
(seed, epoch, index). Any slice of any epoch is therefore computed in closed form, without the slices before it. A
resumed run replays nothing, and the hundreds of millions of contiguous windows of a large log are never held in memory.

Shape legend: W windows, U users.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.hashing import hasher, unit

if TYPE_CHECKING:
    from pipeline.artifacts import Splits

Rule = Literal["random_start", "prefixes", "all", "sequences"]
ROUNDS = 4  # of the Feistel shuffle
SLICES = 3  # of an epoch that are held: two begin an epoch, which the loader looks at twice


@dataclass(frozen=True)
class Windows:
    """A window has the history [start, end) and the target at `end`: flat positions in the splits' sequences."""

    starts_W: NDArray[np.int64]
    ends_W: NDArray[np.int64]

    @property
    def lengths_W(self) -> NDArray[np.int64]:
        """Return the number of items of each history, at least one."""
        return self.ends_W - self.starts_W

    def __len__(self) -> int:
        return len(self.ends_W)

    def __getitem__(self, rows: np.ndarray | slice) -> "Windows":
        return Windows(self.starts_W[rows], self.ends_W[rows])

    def __add__(self, others: "Windows") -> "Windows":
        return Windows(np.concatenate([self.starts_W, others.starts_W]), np.concatenate([self.ends_W, others.ends_W]))


class Epochs:
    """Give the windows of every epoch over the training part of `splits`; none reaches a held-out position.

    Args:
        rule: `random_start`: every (user, end) once per epoch, from a start drawn uniformly among those that leave at
            least one and at most `max_history` items of history. `prefixes`: every (user, end) once, from the user's
            first item, cut to the most recent `max_history`. `all`: every contiguous window once (GRID's rule).
            `sequences`: each user's items once, cut from the end into pieces of `max_history` items and the one after;
            a piece begins with the last item of the piece before it, so that every item but the user's first is a
            target or follows another item of a history.
        seed: equal seeds give equal epochs.
    """

    def __init__(self, splits: "Splits", rule: Rule, seed: int):
        self.rule = rule
        self.seed = seed
        self.max_history = splits.max_history
        self.first_U: NDArray[np.int64] = np.asarray(splits.offsets[:-1])
        self.items_U: NDArray[np.int64] = np.maximum(np.asarray(splits.train_end) - self.first_U, 0)
        # An item can be a target when another one comes before it: a user of 5 training items has 4 targets.
        targets_U = np.maximum(self.items_U - 1, 0)
        if rule == "all":
            counts_U = self._windows_before(self.items_U)
        elif rule == "sequences":
            counts_U = -(-targets_U // self.max_history)  # rounded up: 4 targets, max_history 3 -> 2 pieces
        else:
            counts_U = targets_U
        # A window has an index in 0 .. len - 1; user u has those from offsets_U[u] on. Counts 4, 0, 2 -> 0, 4, 4, 6.
        self.offsets_U = np.concatenate([[0], np.cumsum(counts_U)])
        self._drawn: dict[tuple[int, int, int], Windows] = {}  # the slices that were taken last

    def __len__(self) -> int:
        """Return the number of windows of one epoch."""
        return int(self.offsets_U[-1])

    def take(self, epoch: int, first: int, last: int) -> Windows:
        """Return the windows at positions [first, last) of an epoch; the last few slices are not drawn again."""
        key = (epoch, first, last)
        if key not in self._drawn:
            while len(self._drawn) >= SLICES:
                del self._drawn[next(iter(self._drawn))]
            self._drawn[key] = self._take(epoch, first, last)
        return self._drawn[key]

    def _take(self, epoch: int, first: int, last: int) -> Windows:
        # 1. Position in the epoch -> index of the window, by the epoch's shuffle.
        position_W = np.arange(first, min(last, len(self)), dtype=np.uint64)
        index_W = shuffled(position_W, len(self), hasher(self.seed, 2 * epoch)).astype(np.int64)
        # 2. Index -> user, and number of the window among that user's. Offsets 0, 4, 4, 6: index 5 -> user 2, number 1.
        user_W = np.searchsorted(self.offsets_U, index_W, side="right") - 1
        number_W = index_W - self.offsets_U[user_W]
        # 3. Number -> training items of the user before the target, and items of the history.
        before_W: NDArray[np.int64]
        length_W: NDArray[np.int64]
        if self.rule == "all":
            before_W, length_W = self._decode(number_W)
        elif self.rule == "sequences":
            # 5 items, max_history 3: number 0 has target 4 and history 1 2 3; number 1 has target 1 and history 0.
            before_W = self.items_U[user_W] - 1 - number_W * self.max_history
            length_W = np.minimum(before_W, self.max_history)
        else:
            before_W = number_W + 1
            length_W = np.minimum(before_W, self.max_history)
        if self.rule == "random_start":
            # A uniform number in [0, 1) picks 1 .. length: 0.6 of at most 3 items -> 2 items.
            random_W = hasher(self.seed, 2 * epoch + 1)(index_W.astype(np.uint64))
            length_W = 1 + (unit(random_W) * length_W).astype(np.int64)
        # 4. Back to flat positions in the splits.
        ends_W = self.first_U[user_W] + before_W
        return Windows(ends_W - length_W, ends_W)

    def _windows_before(self, before: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count a user's contiguous windows whose target has fewer than `before` items before it.

        A target with b items before it has min(b, max_history) windows. max_history 2, before 4: 0 + 1 + 2 + 2 = 5
        """
        short = np.minimum(before, self.max_history + 1)  # up to here the counts grow: 0, 1, 2, ...
        counts: NDArray[np.int64] = short * (short - 1) // 2 + (before - short) * self.max_history
        return counts

    def _decode(self, number_W: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Map the number of a contiguous window among its user's to (items before its target, items of its history).

        max_history 2: numbers 0 | 1 2 | 3 4 | ... -> before 1 | 2 2 | 3 3 | ..., length 1 | 1 2 | 1 2 | ...
        """
        # Windows before max_history cuts them: 3 of the example.
        growing = int(self._windows_before(np.array(self.max_history + 1)))
        # Invert before * (before - 1) / 2 <= number. The root is exact: 1 + 8 * number is a perfect square below 2**53
        # wherever the result steps up.
        root_W = ((1 + np.sqrt(1 + 8.0 * number_W)) / 2).astype(np.int64)
        # Behind them every target has max_history windows.
        linear_W = self.max_history + 1 + (number_W - growing) // self.max_history
        before_W = np.where(number_W < growing, root_W, linear_W)
        return before_W, 1 + number_W - self._windows_before(before_W)


def shuffled(
    position_W: NDArray[np.uint64], size: int, hashed: Callable[[np.ndarray], np.ndarray]
) -> NDArray[np.uint64]:
    """Apply a random-looking bijection of range(size) to some positions only; uint64 [W] in and out.

    A Feistel network over the digits (x // b, x % b) permutes range(a * b), the smallest near-square grid that holds
    `size`; a value outside is sent through again until it falls inside (cycle walking), which leaves it a bijection.
    """
    # size 10 -> a grid of a = 4 rows and b = 3 columns, 12 values; 10 and 11 are outside.
    a = int(np.ceil(np.sqrt(size))) or 1
    b = -(-size // a)
    result_W = position_W.copy()
    outside_W = np.ones(len(position_W), bool)  # the first time all values go through
    while outside_W.any():
        high, low = np.divmod(result_W[outside_W], np.uint64(b))
        for turn in range(0, 2 * ROUNDS, 2):
            # Each half is moved by a hash of the other half and the turn: subtracting the same hash would undo it.
            high = (high + hashed(low * np.uint64(2 * ROUNDS) + np.uint64(turn)) % np.uint64(a)) % np.uint64(a)
            low = (low + hashed(high * np.uint64(2 * ROUNDS) + np.uint64(turn + 1)) % np.uint64(b)) % np.uint64(b)
        result_W[outside_W] = high * np.uint64(b) + low
        outside_W = result_W >= size
    return result_W
