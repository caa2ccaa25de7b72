"""Read the exposures of data/interactions, divide them by time and turn their numbers into values.

Shape legend: X exposures of all users end to end, U users.
"""

from datetime import UTC, datetime

import numpy as np

from pipeline.actions import MEDIAN
from pipeline.artifacts import TICKS, Interactions, parquet_rows, read_blocks
from pipeline.exposures import Exposures
from pipeline.split.action_values import action_values, item_medians
from pipeline.split.config import SplitConfig

# Where no dates are set: shares of the exposures, in order of time, at which validation and test begin
VALID_SHARE, TEST_SHARE = 0.8, 0.9


def read_exposures(source: Interactions, config: SplitConfig) -> tuple[Exposures, dict[str, np.ndarray]] | None:
    """Return the exposures and the items' medians of the columns with the edge `median`; None without actions.

    Validation begins at `split.valid_from` and test at `split.test_from` where both are set, whatever the protocol.
    """
    if not (actions := source.actions):
        return None
    names = ["user_id", "item_id", "timestamp", *actions.names]
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for block in read_blocks(source.exposures, names):
        for name in names:
            columns[name].append(block[name].to_numpy(zero_copy_only=False))
    read = {name: np.concatenate(parts) for name, parts in columns.items()}
    users_X, items_X = read["user_id"], read["item_id"].astype(np.int32)
    times_X = read["timestamp"].astype(np.int64)
    valid_from, test_from = period_starts(times_X, config, TICKS[source.time_unit])

    users = np.arange(parquet_rows(source.users) + 1)
    offsets = np.searchsorted(users_X, users).astype(np.int64)
    starts = (valid_from, test_from)
    ends = [offsets[:-1] + counts_before(users_X, times_X, start, len(users) - 1) for start in starts]
    training = times_X < valid_from
    medians = {
        name: item_medians(items_X[training], read[name][training], parquet_rows(source.items))
        for name, edges in zip(actions.names, actions.edges, strict=True)
        if MEDIAN in edges
    }
    exposures = Exposures(
        items_X=items_X,
        actions_XA=action_values(actions, read, items_X, medians),
        timestamps_X=times_X,
        offsets=offsets,
        train_end=ends[0],
        valid_end=ends[1],
        actions=actions,
    )
    return exposures, medians


def period_starts(times_X: np.ndarray, config: SplitConfig, ticks: int) -> tuple[int, int]:
    """Return the first moments of validation and of test; exposures of one moment are never divided."""
    if config.valid_from and config.test_from:
        days = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (config.valid_from, config.test_from))
        first, second = (int(day.timestamp()) * ticks for day in days)
        return first, second
    ranks = [int(share * len(times_X)) for share in (VALID_SHARE, TEST_SHARE)]
    ordered = np.partition(times_X, ranks)
    return int(ordered[ranks[0]]), int(ordered[ranks[1]])


def counts_before(users_X: np.ndarray, times_X: np.ndarray, moment: int, users: int) -> np.ndarray:
    """Count the exposures of each user before a moment, int64 [U]."""
    return np.bincount(users_X[times_X < moment], minlength=users).astype(np.int64)


def exposure_facts(exposures: Exposures) -> dict[str, int]:
    """Return what splits.json says of the exposures: how many there are in each part."""
    return {f"{name}_exposures": len(exposures.part(name)) for name in ("train", "valid", "test")}
