"""Choose the interactions for training, those that choose the model, and those that give the final number.

Both protocols work on the sequences of all users end to end (see `pipeline.artifacts.Splits`) and return flat indices,
which are indices on that axis; -1 means that the user has no such target. A target always has at least one interaction
before it, because its history would be empty otherwise. All interactions that are not for training lie at or after
`train_end`, so that a reader who stays below `train_end` meets no held-out interaction.

Shape legend: U users, N interactions of all users end to end.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

BLOCK_USERS = 100_000  # whose times are in memory at once


@dataclass(frozen=True)
class Targets:
    """Flat indices, int64 [U] each: one past the user's last training interaction, and the held-out interactions."""

    train_end: np.ndarray
    valid_target: np.ndarray
    test_target: np.ndarray


def leave_one_out(offsets: np.ndarray) -> Targets:
    """Hold out each user's last interaction for test and the second last for validation; the others are for training.

    A user with two interactions has only a test target, and a user with one interaction is only for training.

    Args:
        offsets: int64 [U + 1]; the interactions of user u are [offsets[u], offsets[u + 1]).
    """
    # lengths 4, 2, 1, hence offsets 0 4 6 7 -> train_end 2 5 7, valid_target 2 -1 -1, test_target 3 5 -1
    starts, ends = offsets[:-1], offsets[1:]
    lengths = ends - starts
    held_out = np.clip(lengths - 1, 0, 2)
    return Targets(
        train_end=ends - held_out,
        valid_target=np.where(lengths >= 3, ends - 2, -1),
        test_target=np.where(lengths >= 2, ends - 1, -1),
    )


def temporal(
    offsets: np.ndarray, timestamps_N: np.ndarray, valid_from: str, test_from: str, *, ticks: int = 1
) -> Targets:
    """Train on interactions before `valid_from`; the first of each user in the two later periods are the targets.

    The validation target lies in [valid_from, test_from), the test target at or after test_from; both dates are days
    of UTC, YYYY-MM-DD. The other interactions stay in the sequence and are never a target: later interactions of the
    validation period are history of the test target, and nothing reads those after the test target. A user's very first
    interaction is no target either, because it has no history. `ticks` units of timestamps_N are a second.
    """
    # A user with 2 interactions before valid_from, 2 in the validation period and 3 after it, from flat index 10:
    # train_end 12, test_start 14 -> validation target 12, test target 14.
    starts, ends = offsets[:-1], offsets[1:]
    train_end = starts + _earlier(offsets, timestamps_N, valid_from, ticks)
    test_start = starts + _earlier(offsets, timestamps_N, test_from, ticks)
    return Targets(
        train_end=train_end,
        valid_target=np.where((train_end < test_start) & (train_end > starts), train_end, -1),
        test_target=np.where((test_start < ends) & (test_start > starts), test_start, -1),
    )


def _earlier(offsets: np.ndarray, timestamps_N: np.ndarray, day: str, ticks: int) -> np.ndarray:
    """Count the interactions of each user before the first moment of `day` (UTC), int64 [U]."""
    # earlier is a running sum over the users of a block: interactions before the day 1 1 0 | 1 -> earlier 0 1 2 2 3,
    # counts 2 1
    moment = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * ticks
    counts_U = np.zeros(len(offsets) - 1, np.int64)
    for user in range(0, len(counts_U), BLOCK_USERS):
        bounds = offsets[user : user + BLOCK_USERS + 1]
        times = timestamps_N[bounds[0] : bounds[-1]]
        earlier = np.concatenate([[0], np.cumsum(times < moment, dtype=np.int64)])
        counts_U[user : user + BLOCK_USERS] = np.diff(earlier[bounds - bounds[0]])
    return counts_U
