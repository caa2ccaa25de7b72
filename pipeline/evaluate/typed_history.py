"""Read a history as somebody types it: raw item ids, oldest first, each alone or with its time as ID@TIME.

An id may hold an @ itself. Where every entry is a known item as a whole, no entry has a time. Otherwise each entry is
divided at its last @, and what follows must be a time and what stands before must be a known item.

On the command line a text may hold several entries with commas between them (`Typed`). An id that holds a comma stands
in double quotes there, as in CSV, or alone: a text that is a known item as a whole, and whose parts are not, is one.
"""

import csv
import io
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


class Typed(str):
    """A `Typed` is the text of one option --history, with one entry or several."""

    def entries(self, known: "pd.DataFrame") -> list[str]:
        """Return the entries of the text, without the blanks around them.

        Args:
            known: as in `read_history`.

        Raises:
            UserError: a quote is not closed.
        """
        try:
            rows = list(
                csv.reader(io.StringIO(self, newline=""), skipinitialspace=True, strict=self.count('"') % 2 == 1)
            )
        except csv.Error:
            raise UserError(
                f"a double quote is not closed in {shown(self)}",
                "double quotes stand around an id that holds a comma",
                "close it, or write a quote that belongs to an id twice, inside double quotes",
            ) from None
        entries = [entry.strip() for row in rows for entry in row if entry.strip()]
        alone = len(entries) > 1 and '"' not in self and _is_known(self.strip(), known)
        return [self.strip()] if alone and not all(_is_known(entry, known) for entry in entries) else entries


def _is_known(entry: str, known: "pd.DataFrame") -> bool:
    """Tell whether an entry is a known item, alone or before its last @."""
    head, at, _ = entry.rpartition("@")
    return bool((find_ids([entry, head] if at else [entry], known) >= 0).any())


def read_history(
    entries: Sequence[Entry], known: "pd.DataFrame", source: Path, *, wants_times: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (dense item ids, int64 times in seconds or None where the entries have none), in the order of the times.

    Args:
        entries: "ID", "ID@TIME" or (ID, time), or texts that hold several (`Typed`). A time is a number since 1970,
            ISO 8601, a datetime, or a number of an order.
        known: the catalogue, a table with a column raw_id, row = dense id.
        source: the file of `known`, for messages.
        wants_times: whether the model reads times, for notes on stderr.

    Raises:
        UserError: an unknown id, a time that cannot be read, or times of some entries only.
    """
    entries = [one for entry in entries for one in (entry.entries(known) if isinstance(entry, Typed) else [entry])]
    texts = [entry for entry in entries if isinstance(entry, str)]
    if len(texts) == len(entries) and (find_ids(texts, known) >= 0).all():
        return dense_ids(texts, known, "item", source), None
    heads, tails = zip(*map(_divide, entries), strict=True)
    read = [_read_time(tail) for tail in tails]
    _check(entries, heads, tails, [reason for _, _, reason in read], known, source)
    items = dense_ids(heads, known, "item", source)
    microseconds = np.array([time for time, _, _ in read], np.int64)
    order = np.argsort(microseconds, kind="stable")
    if (order[1:] < order[:-1]).any():
        say("the history was put into the order of its times", error=True)
    ordinal = {form == ORDER for _, form, _ in read}
    if len(ordinal) > 1:
        raise UserError(
            "some times of the history are an order (0, 1, 2, ...) and others are times since 1970",
            "the two cannot be compared",
            "write all of them in one form",
        )
    if True in ordinal and wants_times:
        say("the times of the history are an order: a step of 1 counts as a second", error=True)
    return items[order], microseconds[order] // MICROSECONDS


def _read_time(text: str | None) -> tuple[int | None, str | None, str | None]:
    """Return (microseconds, form, what is wrong with it) of one time."""
    column = TimeColumn("auto")
    times, complaints = column.read(pa.array([text], pa.string()))
    return times.to_pylist()[0], column.form, first_reasons(complaints, 1)[0]


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
            "write a time such as 2024-09-05T12:32:27Z, 2024-09-05 or 1725539547, or an order 0, 1, 2",
        )
