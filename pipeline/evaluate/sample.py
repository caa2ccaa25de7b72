"""Evaluate a very large split on a sample of its users.

The sample depends on the users alone, so that the models of a split are evaluated on the same users and compared user
by user.

Shape legend: U users.
"""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.artifacts import Splits
from pipeline.hashing import sample_rows

PURPOSE = 2  # keys the hash that draws the users; not that of validation, which chose the weights


@dataclass(frozen=True)
class Evaluated:
    """The part of a split that is evaluated. users_in_all: users of the whole split who have a test target."""

    splits: Splits  # in which the others have neither a validation nor a test target
    users: int
    users_in_all: int

    @classmethod
    def of(cls, splits: Splits, most: int) -> "Evaluated":
        """Draw at most so many users with a test target, and as many with a validation target; 0: all of them."""
        counts = [int((np.asarray(target) >= 0).sum()) for target in (splits.test_target, splits.valid_target)]
        if not most or max(counts) <= most:
            return cls(splits, counts[0], counts[0])
        targets = {part: _sampled(splits, part, most) for part in ("valid", "test")}
        fewer = replace(splits, valid_target=targets["valid"], test_target=targets["test"])
        return cls(fewer, min(counts[0], most), counts[0])

    @property
    def sampled(self) -> bool:
        """Return whether some users with a test target are left out."""
        return self.users < self.users_in_all

    @property
    def figures(self) -> dict[str, int]:
        """Return what metrics.json says of a sample."""
        return {"users_in_all": self.users_in_all} if self.sampled else {}

    @property
    def words(self) -> str:
        """Return what the protocol says of a sample, so that `compare` puts only equal samples side by side."""
        return f", a sample of {self.users:,} users" if self.sampled else ""


def _sampled(splits: Splits, part: str, most: int) -> np.ndarray:
    """Return the targets of a part, flat indices int64 [U], with -1 for the users who are not drawn."""
    users_U, positions_U = splits.targets(part)
    rows = sample_rows(users_U, most, PURPOSE)
    target_U = np.full(splits.users, -1, np.int64)
    target_U[users_U[rows]] = positions_U[rows]
    return target_U
