"""Which (history, target) windows a pass over the training interactions holds, and in which order.

Nothing is drawn from a stream of random numbers: the place of a window in its pass and its random start are hashes of
(seed, pass, index). So any slice of any pass is computed on its own, in closed form. A resumed run replays nothing, and
the hundreds of millions of contiguous windows of a large log are never held in memory.

Shape legend: W windows, U users.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.hashing import hasher, unit

if TYPE_CHECKING:
    from pipeline.artifacts import Splits

Rule = Literal["random_start", "prefixes", "all", "sequences"]
ROUNDS = 4  # of the Feistel shuffle


@dataclass(frozen=True)
class Windows:
    """A history [start, end) and its target at `end`, as flat positions in the splits' sequences; int64 [W] each."""

    starts_W: np.ndarray
    ends_W: np.ndarray

    @property
    def lengths_W(self) -> np.ndarray:
        """Items of each history, at least one."""
        return self.ends_W - self.starts_W

    def __len__(self) -> int:
        return len(self.ends_W)

    def __getitem__(self, rows: np.ndarray | slice) -> "Windows":
        return Windows(self.starts_W[rows], self.ends_W[rows])

    def __add__(self, others: "Windows") -> "Windows":
        return Windows(np.concatenate([self.starts_W, others.starts_W]), np.concatenate([self.ends_W, others.ends_W]))


class Epochs:
    """All passes over the training part of `splits`; no window reaches a validation or test position.

    Args:
        rule: `random_start`: every (user, end) once per pass, from a start drawn uniformly among those that leave at
            least one and at most `max_history` items of history. `prefixes`: every (user, end) once, from the user's
            first item, cut to the most recent `max_history`. `all`: every contiguous window once (GRID's rule).
            `sequences`: each user's items once, cut from the end into pieces of `max_history` items and the one after;
            a piece begins with the last item of the one before, so that every item but the first ends or is in one.
        seed: equal seeds give equal passes.
    """

    def __init__(self, splits: "Splits", rule: Rule, seed: int):
        first_U = np.asarray(splits.offsets[:-1])
        items_U = np.maximum(np.asarray(splits.train_end) - first_U, 0)
        self.rule, self.seed, self.max_history = rule, seed, splits.max_history
        self.first_U = first_U
        self.items_U = items_U
        counts_U = (
            self._up_to_end(items_U)
            if rule == "all"
            else -(-np.maximum(items_U - 1, 0) // self.max_history)
            if rule == "sequences"
            else np.maximum(items_U - 1, 0)
        )
        self.offsets_U = np.concatenate([[0], np.cumsum(counts_U)])

    def __len__(self) -> int:
        """Windows of one pass."""
        return int(self.offsets_U[-1])

    def take(self, epoch: int, first: int, last: int) -> Windows:
        """The windows at places [first, last) of a pass."""
        position_W = np.arange(first, min(last, len(self)), dtype=np.uint64)
        index_W = shuffled(position_W, len(self), hasher(self.seed, 2 * epoch)).astype(np.int64)
        user_W = np.searchsorted(self.offsets_U, index_W, side="right") - 1
        within_W = index_W - self.offsets_U[user_W]  # rank of the window among its user's
        if self.rule == "all":
            before_W, length_W = self._decode(within_W)
        elif self.rule == "sequences":
            before_W = self.items_U[user_W] - 1 - within_W * self.max_history
            length_W = np.minimum(before_W, self.max_history)
        else:
            before_W = within_W + 1  # training items of the user before the target
            length_W = np.minimum(before_W, self.max_history)
        if self.rule == "random_start":
            random_W = hasher(self.seed, 2 * epoch + 1)(index_W.astype(np.uint64))
            length_W = 1 + (unit(random_W) * length_W).astype(np.int64)
        ends_W = self.first_U[user_W] + before_W
        return Windows(ends_W - length_W, ends_W)

    def _up_to_end(self, before: np.ndarray | np.int64) -> np.ndarray | np.int64:
        """A user's contiguous windows whose target has fewer than `before` items before it."""
        short = np.minimum(before, self.max_history + 1)
        return short * (short - 1) // 2 + (before - short) * self.max_history

    def _decode(self, within_W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rank of a contiguous window among its user's -> (items before its target, items of its history)."""
        growing = self._up_to_end(np.int64(self.max_history + 1))  # windows before max_history cuts them
        # The triangular root is exact: 1 + 8w is a perfect square below 2**53 wherever the result steps up.
        root_W = ((1 + np.sqrt(1 + 8.0 * within_W)) / 2).astype(np.int64)
        linear_W = self.max_history + 1 + (within_W - growing) // self.max_history
        before_W = np.where(within_W < growing, root_W, linear_W)
        return before_W, 1 + within_W - self._up_to_end(before_W)


def shuffled(position_W: np.ndarray, size: int, hashed: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A random-looking bijection of range(size), evaluated at some places only; uint64 in and out.

    A Feistel network over the digits (x // b, x % b) permutes range(a * b), the smallest near-square grid that holds
    `size`; a value outside is sent through again until it falls inside (cycle walking), which keeps it a bijection.
    """
    a = int(np.ceil(np.sqrt(size))) or 1
    b = -(-size // a)
    result_W, outside_W = position_W.copy(), np.ones(len(position_W), bool)
    while outside_W.any():
        high, low = np.divmod(result_W[outside_W], np.uint64(b))
        for turn in range(0, 2 * ROUNDS, 2):
            high = (high + hashed(low * np.uint64(2 * ROUNDS) + np.uint64(turn)) % np.uint64(a)) % np.uint64(a)
            low = (low + hashed(high * np.uint64(2 * ROUNDS) + np.uint64(turn + 1)) % np.uint64(b)) % np.uint64(b)
        result_W[outside_W] = high * np.uint64(b) + low
        outside_W = result_W >= size
    return result_W
