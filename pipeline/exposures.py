"""The exposures in data/splits: what each user was shown, in order, with the actions, divided by time.

The files exist where `ingest.actions` names columns. The order is (user, timestamp, source row).

Shape legend: U users, X exposures of all users end to end, A columns of actions.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.actions import Actions
from pipeline.artifacts import SPLITS, Splits, open_array, read_json
from pipeline.manifest import writing


@dataclass(frozen=True, kw_only=True)
class Exposures:
    """`Exposures` holds the exposures of all users end to end.

    items_X int32, actions_XA uint8 (`split.action_values`) and timestamps_X int64 (in the splits' unit).
    offsets int64 [U + 1]: the exposures of user u are [offsets[u], offsets[u + 1]). train_end, valid_end int64 [U]:
    those before train_end[u] are for training, those from there to valid_end[u] for validation, the others for test.
    """

    items_X: np.ndarray
    actions_XA: np.ndarray
    timestamps_X: np.ndarray
    offsets: np.ndarray
    train_end: np.ndarray
    valid_end: np.ndarray
    actions: Actions

    ARRAYS = ("items_X", "actions_XA", "timestamps_X", "offsets", "train_end", "valid_end")

    @staticmethod
    def file(folder: Path, name: str) -> Path:
        return folder / f"exposures_{name}.npy"

    def write(self, folder: Path = SPLITS) -> None:
        """Write the arrays; the names and edges of the actions stand in splits.json, which `Splits.write` writes."""
        for name in self.ARRAYS:
            with writing(self.file(folder, name)) as file:
                np.save(file, getattr(self, name), allow_pickle=False)

    @classmethod
    def remove(cls, folder: Path = SPLITS) -> None:
        """Remove the files of an earlier split with actions."""
        for name in cls.ARRAYS:
            cls.file(folder, name).unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: Path = SPLITS) -> "Exposures | None":
        """Open the arrays memory-mapped; None where the split has no actions."""
        declared = read_json(folder / "splits.json").get("actions")
        if not declared:
            return None
        arrays = {name: open_array(cls.file(folder, name)) for name in cls.ARRAYS}
        return cls(**arrays, actions=Actions.of(declared))

    def sequences(self, splits: Splits) -> Splits:
        """Return the exposures in the form of interactions, without held-out targets; `splits` has the catalogue."""
        nobody_U = np.full(len(self.offsets) - 1, -1)
        return Splits(
            items_N=self.items_X,
            timestamps_N=self.timestamps_X,
            offsets=self.offsets,
            train_end=self.train_end,
            valid_target=nobody_U,
            test_target=nobody_U,
            summary=splits.summary,
            actions_NA=self.actions_XA,
        )

    def with_history(self, name: str) -> np.ndarray:
        """Return the flat indices of those of a part that have an earlier exposure of their user."""
        found = self.part(name)
        return found[self.earlier(found) > 0]

    def earlier(self, rows_X: np.ndarray) -> np.ndarray:
        """Return how many earlier exposures of its user each of these flat indices has."""
        earlier_X: np.ndarray = rows_X - np.asarray(self.offsets)[self.users_of(rows_X)]
        return earlier_X

    def users_of(self, rows_X: np.ndarray) -> np.ndarray:
        """Return the user of each of these flat indices."""
        return np.searchsorted(self.offsets, rows_X, side="right") - 1

    def users_X(self) -> np.ndarray:
        """Return the user of each exposure, int64 [X]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def part(self, name: str) -> np.ndarray:
        """Return the flat indices of part `train`, `valid` or `test`, ascending, int64."""
        begin, end = {
            "train": (self.offsets[:-1], self.train_end),
            "valid": (self.train_end, self.valid_end),
            "test": (self.valid_end, self.offsets[1:]),
        }[name]
        counts = np.asarray(end) - np.asarray(begin)
        before = np.cumsum(counts) - counts
        return np.repeat(np.asarray(begin) - before, counts) + np.arange(counts.sum())
