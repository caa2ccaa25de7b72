"""Stage split: write the users' sequences, and which of their positions are for training, validation and test.

The stage reads data/interactions/ and writes data/splits/. Nothing is copied per window: a window is a pair of flat
indices, so the split of ten million interactions is a handful of arrays that later stages map into memory.

Shape legend: U users, N interactions of all users end to end, B those of a block of users.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.actions import Actions
from pipeline.artifacts import INTERACTIONS, SPLITS, TICKS, Interactions, Splits, parquet_rows, read_blocks
from pipeline.errors import UserError
from pipeline.exposures import Exposures
from pipeline.printing import say
from pipeline.split.action_values import action_values
from pipeline.split.config import SplitConfig
from pipeline.split.exposures import exposure_facts, read_exposures
from pipeline.split.protocols import leave_one_out, temporal
from pipeline.split.ties import shuffle_ties

if TYPE_CHECKING:
    import pyarrow as pa


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
    exposed = read_exposures(source, params.split)
    medians = exposed[1] if exposed else {}
    with _sequences(source, params.split, params.seed, output.parent, medians) as (
        items_N,
        timestamps_N,
        offsets,
        actions_NA,
    ):
        splits = split_sequences(
            items_N,
            timestamps_N,
            offsets,
            items=parquet_rows(source.items),
            config=params.split,
            time_unit=source.time_unit,
        )
        Exposures.remove(output)
        if exposed:
            exposures = exposed[0]
            exposures.write(output)
            facts = {"actions": exposures.actions.as_json(), **exposure_facts(exposures)}
            splits = replace(splits, actions_NA=actions_NA, summary={**splits.summary, **facts})
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
    if exposed:
        say(
            f"split: {summary['train_exposures']:,} training, {summary['valid_exposures']:,} validation and "
            f"{summary['test_exposures']:,} test exposures, divided by time"
        )
    return summary


@contextmanager
def _sequences(
    source: Interactions, config: SplitConfig, seed: int, folder: Path, medians: Mapping[str, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Read the log block by block, and give (items_N, timestamps_N, offsets, actions_NA); all but offsets are mapped.

    The files lie in `folder` without a name, so that they vanish with the process. actions_NA is [N, 0] without
    actions.

    Args:
        medians: those of the items, as `split.action_values` takes them.
    """
    interactions = parquet_rows(source.log)
    actions = source.actions or Actions((), ())
    lengths_U = np.zeros(parquet_rows(source.users), np.int64)
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryFile(dir=folder) as items_file,
        TemporaryFile(dir=folder) as times_file,
        TemporaryFile(dir=folder) as actions_file,
    ):
        items_N = _mapped(items_file, np.dtype(np.int32), interactions)
        timestamps_N = _mapped(times_file, np.dtype(np.int64), interactions)
        actions_NA = _mapped(actions_file, np.dtype(np.uint8), interactions * len(actions.names))
        actions_NA = actions_NA.reshape(interactions, len(actions.names))
        done = 0
        columns = ["user_id", "item_id", "timestamp", *actions.names]
        for users_B, items_B, times_B, *numbers in whole_users(read_blocks(source.log, columns), columns):
            if config.ties == "shuffled":  # the order changes neither users nor times: they are equal within a tie
                order_B = shuffle_ties(users_B, times_B, random)
                items_B = items_B[order_B]
                numbers = [numbers_B[order_B] for numbers_B in numbers]
            end = done + len(users_B)
            items_N[done:end] = items_B
            timestamps_N[done:end] = times_B
            if actions.names:
                named = dict(zip(actions.names, numbers, strict=True))
                actions_NA[done:end] = action_values(actions, named, items_B, medians)
            found, counts = np.unique(users_B, return_counts=True)
            lengths_U[found] += counts
            done = end
        yield items_N, timestamps_N, np.concatenate([[0], np.cumsum(lengths_U)]), actions_NA


def _mapped(file: IO[bytes], dtype: np.dtype[Any], length: int) -> np.ndarray:
    file.truncate(dtype.itemsize * length)
    return np.memmap(file, dtype, "r+", shape=(length,)) if length else np.zeros(0, dtype)


def whole_users(
    blocks: Iterable["pa.RecordBatch"], names: Sequence[str] = ("user_id", "item_id", "timestamp")
) -> Iterator[list[np.ndarray]]:
    """Yield these columns, users first, of blocks of a log that is sorted by user, cut only between two users."""
    # users 0 0 1 | 1 1 2 -> 0 0 | 1 1 1 | 2
    waiting: list[list[np.ndarray]] = []  # of the last user so far
    for block in blocks:
        columns = [block[name].to_numpy(zero_copy_only=False) for name in names]
        last = int(np.searchsorted(columns[0], columns[0][-1])) if len(block) else 0
        if last or (waiting and len(block) and waiting[0][0][0] != columns[0][0]):
            waiting.append([column[:last] for column in columns])
            yield [np.concatenate(parts) for parts in zip(*waiting, strict=True)]
            waiting = []
        waiting.append([column[last:] for column in columns])
    if waiting:
        yield [np.concatenate(parts) for parts in zip(*waiting, strict=True)]


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
    """Split a log in memory, which is sorted by (user, time), as `run` splits data/interactions/.

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
        items_N = items_N[shuffle_ties(users_N, timestamps_N, np.random.default_rng(seed))]
    # users_N 0 0 0 2 with 3 users -> offsets 0 3 3 4
    offsets = np.searchsorted(users_N, np.arange(users + 1)).astype(np.int64)
    return split_sequences(items_N, timestamps_N, offsets, items=items, config=config, time_unit=time_unit)


def split_sequences(
    items_N: np.ndarray,
    timestamps_N: np.ndarray,
    offsets: np.ndarray,
    *,
    items: int,
    config: SplitConfig,
    time_unit: str = "s",
) -> Splits:
    """Choose the targets of sequences that lie end to end, as `Splits` describes them.

    Raises:
        UserError: there is no training, validation or test target.
    """
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
