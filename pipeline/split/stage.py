"""Stage split: write the users' sequences, and which of their positions are for training, validation and test.

The stage reads data/interactions/ and writes data/splits/. Nothing is copied per window: a window is a pair of flat
indices, so the split of ten million interactions is a handful of arrays that later stages map into memory.

Shape legend: N interactions of all users end to end.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.artifacts import INTERACTIONS, SPLITS, TICKS, Interactions, Splits, read_parquet
from pipeline.errors import UserError
from pipeline.printing import say
from pipeline.split.config import SplitConfig
from pipeline.split.protocols import leave_one_out, temporal
from pipeline.split.ties import shuffle_ties


class SplitParams(Protocol):
    """`SplitParams` declares what the stage reads of params.yaml."""

    @property
    def seed(self) -> int: ...

    @property
    def split(self) -> SplitConfig: ...


def run(params: SplitParams, *, interactions: Path = INTERACTIONS, output: Path = SPLITS) -> dict[str, Any]:
    """Write data/splits/ and return its summary.

    Raises:
        UserError: an input is missing or damaged, one of the three parts is empty, or dates should divide an order.
    """
    source = Interactions(interactions)
    if params.split.protocol == "temporal" and source.time_format == "order":
        raise UserError(
            "split.protocol is temporal, but the log's times are a mere order (0, 1, 2, ...)",
            "an order has no dates that split.valid_from and split.test_from could divide",
            "set split.protocol=leave_one_out, or bring a log with dates",
        )
    log = read_parquet(source.log, columns=["user_id", "item_id", "timestamp"])
    splits = split_log(
        log["user_id"].to_numpy(),
        log["item_id"].to_numpy(np.int32),
        log["timestamp"].to_numpy(np.int64),
        users=len(read_parquet(source.users, columns=["user_id"])),
        items=len(read_parquet(source.items, columns=["item_id"])),
        config=params.split,
        seed=params.seed,
        time_unit=source.time_unit,
    )
    splits.write(output)
    summary = splits.summary
    say(
        f"split: {summary['train_targets']:,} training, {summary['valid_targets']:,} validation and "
        f"{summary['test_targets']:,} test targets of {summary['users']:,} users"
    )
    say(
        f"split: {summary['tie_share']:.1%} of test targets share their timestamp with the item before them "
        f"(ties: {summary['ties']})"
    )
    return summary


def split_log(
    users_N: np.ndarray,
    items_N: np.ndarray,
    timestamps_N: np.ndarray,
    *,
    users: int,
    items: int,
    config: SplitConfig,
    seed: int,
    time_unit: str = "s",
) -> Splits:
    """Split a log that is sorted by (user, time) into sequences with targets, without reading or writing files.

    Args:
        users_N: dense ids of users.
        items_N: dense ids of items.
        timestamps_N: times since 1970 in `time_unit`.
        users: how many users there are, those without an interaction included.
        items: how many items there are, those without an interaction included.
        time_unit: s or us.

    Raises:
        UserError: there is no training, validation or test target.
    """
    if config.ties == "shuffled":
        order = shuffle_ties(users_N, timestamps_N, seed)
        items_N = items_N[order]  # the order changes neither users nor timestamps: they are equal within a tie
    # users_N 0 0 0 2 with 3 users -> offsets 0 3 3 4
    offsets = np.searchsorted(users_N, np.arange(users + 1)).astype(np.int64)
    if config.protocol == "leave_one_out":
        targets = leave_one_out(offsets)
    else:
        targets = temporal(offsets, timestamps_N, config.valid_from, config.test_from, ticks=TICKS[time_unit])
    splits = Splits(
        items_N=items_N,
        timestamps_N=timestamps_N,
        offsets=offsets,
        train_end=targets.train_end,
        valid_target=targets.valid_target,
        test_target=targets.test_target,
        summary={} if time_unit == "s" else {"time_unit": time_unit},
    )
    splits = replace(splits, summary={**_summarise(splits, items, config), **splits.summary})
    _require_targets(splits, config)
    return splits


def _require_targets(splits: Splits, config: SplitConfig) -> None:
    for part in ("train", "valid", "test"):
        if splits.summary[f"{part}_targets"]:
            continue
        if config.protocol == "leave_one_out":
            raise UserError(
                f"no {part} target is left",
                "leave_one_out holds out a user's last two interactions, and the first one is only history",
                "bring a log where users have four interactions or more",
            )
        times = splits.seconds()
        first, last = (datetime.fromtimestamp(int(time), UTC).date() for time in (times.min(), times.max()))
        raise UserError(
            f"no {part} target is left with split.valid_from {config.valid_from} and split.test_from "
            f"{config.test_from}",
            f"the log runs from {first} to {last}, and a target needs an earlier interaction of its user",
            "choose dates well inside that range",
        )


def _summarise(splits: Splits, items: int, config: SplitConfig) -> dict[str, Any]:
    """Return the content of splits.json.

    tie_share: share of test targets that have an earlier interaction of their user with the same timestamp;
    valid_tie_share: the same of validation targets.
    """
    starts, ends = splits.offsets[:-1], splits.offsets[1:]
    _, valid = splits.targets("valid")
    _, test = splits.targets("test")
    dates = {"valid_from": config.valid_from, "test_from": config.test_from} if config.protocol == "temporal" else {}
    return {
        "protocol": config.protocol,
        **dates,
        "ties": config.ties,
        "max_history": config.max_history,
        "users": splits.users,
        "items": items,
        "interactions": len(splits.items_N),
        "train_targets": int(np.maximum(splits.train_end - starts - 1, 0).sum()),
        "valid_targets": len(valid),
        "test_targets": len(test),
        "users_too_short": int((ends - starts < 3).sum()),
        "tie_share": _share(splits.has_tie(test)),
        "valid_tie_share": _share(splits.has_tie(valid)),
    }


def _share(mask: np.ndarray) -> float:
    return round(float(mask.mean()), 6) if len(mask) else 0.0
