"""Which interactions are for training, which choose the model, and which give the final number.

Both protocols work on flat sequences (see `pipeline.artifacts.Splits`) and return flat indices; -1 means that the user
has no such target. A target always has at least one interaction before it, as there is nothing to predict from
otherwise. Whatever a protocol keeps out of training lies at or after `train_end`, so that a reader who stays below
`train_end` cannot meet a held-out interaction.

Shape legend: U users, N interactions.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np


@dataclass(frozen=True)
class Targets:
    """int64 [U] each: one past the user's last training interaction, and the held-out interactions."""

    train_end: np.ndarray
    valid_target: np.ndarray
    test_target: np.ndarray


def leave_one_out(offsets: np.ndarray) -> Targets:
    """Last interaction is test, second last is validation, the others are for training.

    A user with two interactions has only a test target, and one with a single interaction only trains.
    """
    starts, ends = offsets[:-1], offsets[1:]
    lengths = ends - starts
    held_out = np.clip(lengths - 1, 0, 2)
    return Targets(
        train_end=ends - held_out,
        valid_target=np.where(lengths >= 3, ends - 2, -1),
        test_target=np.where(lengths >= 2, ends - 1, -1),
    )


def temporal(offsets: np.ndarray, timestamps_N: np.ndarray, valid_from: str, test_from: str) -> Targets:
    """Training is what lies before `valid_from`; targets are each user's first interaction in the two later periods.

    The validation target lies in [valid_from, test_from), the test target at or after test_from; both dates are days
    of UTC, YYYY-MM-DD. The rest stays in the sequence and is never a target: later interactions of the validation
    period are history of the test target, and those after the test target are read by nothing. A user's very first
    interaction is no target either, as it has no history.
    """
    starts, ends = offsets[:-1], offsets[1:]
    train_end = starts + _earlier(offsets, timestamps_N, valid_from)
    test_start = starts + _earlier(offsets, timestamps_N, test_from)
    return Targets(
        train_end=train_end,
        valid_target=np.where((train_end < test_start) & (train_end > starts), train_end, -1),
        test_target=np.where((test_start < ends) & (test_start > starts), test_start, -1),
    )


def _earlier(offsets: np.ndarray, timestamps_N: np.ndarray, day: str) -> np.ndarray:
    """How many interactions of each user lie before the first second of `day` (UTC). int64 [U]."""
    moment = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
    earlier = np.concatenate([[0], np.cumsum(timestamps_N < moment, dtype=np.int64)])
    return earlier[offsets[1:]] - earlier[offsets[:-1]]
