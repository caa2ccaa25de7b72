"""Break the metrics down by the length of the history and by the popularity of the target."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.artifacts import write_bytes
from pipeline.metrics import ndcg_at, recall_at

EDGES = np.array([0, 1, 3, 6, 11, 21, 51, 101, 201, 501, 1001, 10_001])  # first value of each bin


def by_bins(ranks: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return one row per bin of `column` that has users.

    The columns are bin, users, recall_at_10, ndcg_at_10 and the recall of the two baselines. A bin is named by its
    first and last value. The first one is padded with blanks, so that names sorted as text are in the order of the
    numbers: values up to 12 -> " 1-2", " 3-5", " 6-10", "11-20"
    """
    bins = bins_of(ranks[column].to_numpy())
    present = np.unique(bins)
    rows = []
    for index in present:
        part = ranks[bins == index]
        rank = part["rank"].to_numpy()
        rows.append(
            {
                "bin": bin_name(index, present),
                "users": len(part),
                "recall_at_10": recall_at(rank, 10),
                "ndcg_at_10": ndcg_at(rank, 10),
                "cooccurrence_recall_at_10": recall_at(part["cooccurrence_rank"].to_numpy(), 10),
                "popularity_recall_at_10": recall_at(part["popularity_rank"].to_numpy(), 10),
            }
        )
    return pd.DataFrame(rows)


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV; equal content gives equal bytes."""
    write_bytes(path, frame.to_csv(index=False, lineterminator="\n").encode())


def bins_of(values: np.ndarray) -> np.ndarray:
    """Return the number of each value's bin."""
    return np.searchsorted(EDGES, values, side="right") - 1


def bin_name(index: int, present: np.ndarray) -> str:
    """Return the name of a bin, padded to the longest of those that are present."""
    width = len(str(EDGES[present[-1]]))
    first = f"{EDGES[index]:>{width}}"
    if index + 1 == len(EDGES):
        return f"{first} or more"
    last = EDGES[index + 1] - 1
    return first if last == EDGES[index] else f"{first}-{last}"
