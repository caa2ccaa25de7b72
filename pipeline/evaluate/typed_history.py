"""Read a history as somebody types it: raw item ids, oldest first, each alone or with its time as ID@TIME.

An id may hold an @ itself. Where every entry is a known item as a whole, no entry has a time. Otherwise each entry is
divided at its last @, and what follows must be a time and what stands before must be a known item.
"""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.artifacts import MICROSECONDS
from pipeline.errors import UserError
from pipeline.printing import say, shown
from pipeline.raw_ids import dense_ids, find_ids
from pipeline.raw_times import ORDER, TimeColumn, first_reasons

if TYPE_CHECKING:
    import pandas as pd

Entry = str | tuple[str, str | float | date]  # "ID", "ID@TIME", or (ID, time)


def read_history(
    entries: Sequence[Entry], known: "pd.DataFrame", source: Path, *, wants_times: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (dense item ids, int64 times in seconds or None where the entries have none), in the order of the times.

    Args:
        entries: "ID", "ID@TIME" or (ID, time). A time is a number since 1970, ISO 8601, a datetime, or a number of an
            order.
        known: the catalogue, a table with a column raw_id, row = dense id.
        source: the file of `known`, for messages.
        wants_times: whether the model reads times, for notes on stderr.

    Raises:
        UserError: an unknown id, a time that cannot be read, or times of some entries only.
    """
    texts = [entry for entry in entries if isinstance(entry, str)]
    if len(texts) == len(entries) and (find_ids(texts, known) >= 0).all():
        return dense_ids(texts, known, "item", source), None
    heads, tails = zip(*map(_divide, entries), strict=True)
    column = TimeColumn("auto")
    microseconds, complaints = column.read(pa.array(tails, pa.string()))
    reasons = first_reasons(complaints, len(tails))
    _check(entries, heads, tails, reasons, known, source)
    items = dense_ids(heads, known, "item", source)
    times = microseconds.to_numpy() // MICROSECONDS
    order = np.argsort(microseconds.to_numpy(), kind="stable")
    if (order[1:] < order[:-1]).any():
        say("the history was put into the order of its times", error=True)
    if column.form == ORDER and wants_times:
        say("the times of the history are an order: a step of 1 counts as a second", error=True)
    return items[order], times[order]


def equal_steps(items: int, seconds_N: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return int64 times of items that came one median gap of a log after the other, and say so on stderr.

    Args:
        items: how many.
        seconds_N: times of the log, one user's sequence after the other's; offsets: where each sequence begins.
    """
    gaps = np.diff(seconds_N)
    inside = np.ones(len(gaps), bool)
    inside[offsets[1:-1] - 1] = False  # from the last item of a user to the first of the next
    step = int(np.median(gaps[inside])) if inside.any() else 0
    say(
        f"the model reads when each item came, and the history does not say so: each item counts as {step:,} s after "
        "the one before, the median of the log; ID@TIME gives the times",
        error=True,
    )
    return step * np.arange(items, dtype=np.int64)


def _divide(entry: Entry) -> tuple[str, str | None]:
    """Return the id and the time of an entry; None without a time."""
    if not isinstance(entry, str):
        item, time = entry
        return item, time.isoformat() if isinstance(time, date) else str(time)
    head, at, tail = entry.rpartition("@")
    return (head, tail) if at else (entry, None)


def _check(
    entries: Sequence[Entry],
    heads: Sequence[str],
    tails: Sequence[str | None],
    reasons: Sequence[str | None],
    known: "pd.DataFrame",
    source: Path,
) -> None:
    """Raise an error about the first entry that is no known item at a time."""
    if all(tail is None for tail in tails):
        dense_ids([entry for entry in entries if isinstance(entry, str)], known, "item", source)  # one is not known
    found = find_ids(heads, known)
    for entry, head, tail, reason, index in zip(entries, heads, tails, reasons, found, strict=True):
        if tail is not None and reason is None and index >= 0:
            continue
        if isinstance(entry, str) and (tail is None or find_ids([entry], known)[0] >= 0):
            dense_ids([entry], known, "item", source)
            raise UserError(
                f"'{shown(entry)}' has no time, and other items of the history have one",
                "the times decide on the order of the items",
                "give a time to every item (ID@TIME), or to none",
            )
        # "mail@x" with an unknown item mail: @x is no time, so the whole entry is the id that is not known.
        dense_ids([entry if isinstance(entry, str) and index < 0 and reason else head], known, "item", source)
        raise UserError(
            f"the time of '{shown(head)}' cannot be read: {shown(tail)}",
            str(reason).replace("timestamp", "it", 1),
            "write all times in one form, such as 2024-09-05T12:32:27Z, 1725539547 or 0, 1, 2",
        )
