"""Metrics by how much the model knew of the user, and by how well the target was known."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.artifacts import write_bytes
from pipeline.metrics import ndcg_at, recall_at

EDGES = np.array([0, 1, 3, 6, 11, 21, 51, 101, 201, 501, 1001, 10_001])  # first value of each bin


def by_bins(ranks: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per bin of `column` that has users: bin, users, recall_at_10, ndcg_at_10, and recall of the baselines.

    Bins are named by their first and last value, the first one padded with blanks, so that plots which sort names as
    text keep the order of the numbers.
    """
    bins = np.searchsorted(EDGES, ranks[column].to_numpy(), side="right") - 1
    present = np.unique(bins)
    width = len(str(EDGES[present[-1]])) if len(present) else 0
    rows = []
    for index in present:
        part = ranks[bins == index]
        rank = part["rank"].to_numpy()
        rows.append(
            {
                "bin": _name(index, width),
                "users": len(part),
                "recall_at_10": recall_at(rank, 10),
                "ndcg_at_10": ndcg_at(rank, 10),
                "cooccurrence_recall_at_10": recall_at(part["cooccurrence_rank"].to_numpy(), 10),
                "popularity_recall_at_10": recall_at(part["popularity_rank"].to_numpy(), 10),
            }
        )
    return pd.DataFrame(rows)


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """CSV that is equal for equal content."""
    write_bytes(path, frame.to_csv(index=False, lineterminator="\n").encode())


def _name(index: int, width: int) -> str:
    first = f"{EDGES[index]:>{width}}"
    if index + 1 == len(EDGES):
        return f"{first} or more"
    last = EDGES[index + 1] - 1
    return first if last == EDGES[index] else f"{first}-{last}"
