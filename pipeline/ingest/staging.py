"""First half of the stage: write the log's files as typed Parquet into the scratch folder, and bad rows as rejects.

The files are read once, in bounded memory; item_file.py reads the item file. The steps that follow (filters, k-core,
ids) are relational: see clean.py.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.ingest.ahead import read_ahead
from pipeline.ingest.chunks import Chunk
from pipeline.ingest.columns import (
    LOG_NAMES,
    LogColumns,
    check_actions,
    needed_partition,
    recognise_log,
)
from pipeline.ingest.ids import IdColumn, as_listed, plain_unknown, rewrite_ids
from pipeline.ingest.item_file import StagedItems
from pipeline.ingest.readers import read_chunks, sample
from pipeline.ingest.rejects import Rejects
from pipeline.ingest.sources import RawFile
from pipeline.ingest.staged_file import StagedFile
from pipeline.ingest.values import number_column
from pipeline.ingest.where import RowFilter
from pipeline.printing import shown
from pipeline.progress import Progress
from pipeline.raw_times import Complaint, TimeColumn

INTERACTION = (("source_row", pa.int64()), ("user", pa.string()), ("item", pa.string()), ("timestamp", pa.int64()))


@dataclass(frozen=True)
class StagedLog:
    """The log's good rows as Parquet: source_row (int64), user, item, timestamp (microseconds), then the actions.

    Where an item file lists every item, the log has the source_row of that file (int64) as its item.
    """

    path: Path
    read: int  # rows of the files, rejected ones and those that are not wanted included
    columns: Mapping[str, str]  # our name -> the log's; empty: there is no good row
    not_numbers: Mapping[str, int]  # optional action -> texts among its values that are no number, hence null
    trimmed: dict[str, int]  # user, item -> good rows whose id had blanks around it


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Settings say how a log is to be read.

    mapping: our column name -> the log's, complete for a recipe. minimum: action column -> least value; a row without a
    value in one of these columns is a reject. actions: columns of `ingest.actions`. guess_actions: take further numeric
    columns as actions. null_words: texts that are no id. rows: tells which rows are wanted. keep_unknown: take rows
    whose item the item file does not list.
    """

    mapping: Mapping[str, str]
    minimum: Mapping[str, float]
    actions: Collection[str]
    guess_actions: bool
    null_words: Sequence[str]
    rows: RowFilter
    keep_unknown: bool


@dataclass
class ActionValues:
    """An `ActionValues` holds what the action columns have in good rows.

    numbers: actions with at least one number. not_numbers: action -> how many texts. texts: action -> its first text.
    """

    numbers: set[str] = field(default_factory=set)
    not_numbers: Counter[str] = field(default_factory=Counter)
    texts: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, raw: pa.ChunkedArray, typed: pa.Array, odd: pa.Array, usable: pa.Array) -> None:
        """Take the values of a chunk; `odd` tells which are texts, `usable` which rows are good."""
        odd = pc.and_(odd, usable)
        if name not in self.numbers and pc.any(pc.and_(typed.is_valid(), usable)).as_py():
            self.numbers.add(name)
        if texts := pc.sum(odd).as_py():
            self.not_numbers[name] += texts
            self.texts.setdefault(name, raw.filter(odd)[0].as_py())

    def check(self, asked: Collection[str], columns: LogColumns) -> None:
        """Refuse a column of `ingest.actions` without a number in a good row: a model would learn nothing from it.

        Args:
            asked: the columns that `ingest.actions` names.

        Raises:
            UserError: there is such a column.
        """
        for name in asked:
            if name not in self.numbers:
                texts = f"holds no numbers, but texts such as '{shown(self.texts[name])}'" if name in self.texts else ""
                raise UserError(
                    f"ingest.actions names {shown(name)}, and the log's column {shown(columns.actions[name])} "
                    f"{texts or 'has no value'} in all usable rows",
                    "what users did is read as numbers, and every row would count as one without an action",
                    f"write numbers in place of the texts, or take {shown(name)} out of ingest.actions"
                    if texts
                    else f"take {shown(name)} out of ingest.actions",
                )


def stage_log(
    files: Sequence[RawFile],
    settings: LogSettings,
    rejects: Rejects,
    path: Path,
    *,
    items: StagedItems | None,
    times: TimeColumn,
) -> StagedLog:
    """Read the log's files, in order, into one Parquet file at `path`.

    Args:
        items: the item file, if there is one; a row whose item it does not list is a reject, unless `keep_unknown`.
        times: reads the column of times; a row in another form than the column's is a reject.

    Raises:
        UserError: a column is missing or ambiguous, or a file cannot be read.
    """
    # The first file with rows decides on the columns of the output: source_row, user, item, timestamp, its actions.
    plan = _plan(files, settings)
    columns = next((columns for _, columns in plan if columns), None)
    if columns:
        check_actions("ingest.minimum", settings.minimum, columns)
        check_actions("ingest.actions", settings.actions, columns)
    schema = pa.schema([*INTERACTION, *((name, pa.float64()) for name in (columns.actions if columns else ()))])
    codes = items.source_rows() if items and not settings.keep_unknown else None
    if codes is not None:
        schema = schema.set(schema.get_field_index("item"), pa.field("item", pa.int64()))

    # source_row counts through all files: a first file of 3 rows has 0, 1, 2, the second file begins with 3.
    accepted = 0
    values = ActionValues()
    ids = {name: IdColumn(name, settings.null_words) for name in ("user", "item")}
    first = 0  # source_row of the file's first row
    with StagedFile(path, schema) as staged, Progress("ingest: log", 0, "rows") as progress:
        for file, names in plan:
            last = -1  # number of the file's last row
            wanted = names.read if names else None
            for rows in read_ahead(partial(read_chunks, file, columns=wanted), rejects.of(file)):
                assert names is not None  # a file without columns has no chunks
                last = int(rows.records[-1])
                progress.update(len(rows.lines))
                chunk = settings.rows.wanted(rows, names.filters)
                if not len(chunk.lines):
                    continue

                # Type the columns, send rows with a complaint to the rejects and write the others.
                arrays, complaints, odd, listed = _type(chunk, names, settings, ids, times, items)
                usable = rejects.usable(file, chunk, complaints, names.wanted)
                user, item, *others = arrays
                item = item if codes is None else pa.array(codes[listed])
                staged.add(
                    pa.table([pa.array(first + chunk.records), user, item, *others], schema=schema).filter(usable)
                )
                for column, name, array in zip(ids.values(), names.wanted, arrays, strict=False):
                    column.accept(chunk.table[name].combine_chunks().filter(usable), array.filter(usable))
                accepted += pc.sum(usable).as_py() or 0
                for name, typed in zip(names.actions, arrays[3:], strict=True):  # behind user, item and timestamp
                    values.take(name, chunk.table[names.actions[name]], typed, odd[name], usable)
            first += last + 1
    if columns and accepted:
        values.check(settings.actions, columns)
    read = accepted + rejects.total([file.name for file in files]) + settings.rows.not_wanted
    # With an item file the ids of items are already written as that file lists them.
    rewritten = [name for name, column in ids.items() if column.to_rewrite and not (name == "item" and items)]
    if rewritten:
        rewrite_ids(path, rewritten)
    return StagedLog(
        path=path,
        read=read,
        columns=columns.named() if columns else {},
        not_numbers={name: count for name, count in values.not_numbers.items() if count},
        trimmed={name: column.trimmed for name, column in ids.items() if column.trimmed},
    )


def _plan(files: Sequence[RawFile], settings: LogSettings) -> list[tuple[RawFile, LogColumns | None]]:
    """Return each file with its columns, None for a file without a good row.

    The first file that has rows decides on the actions; the files after it must have the same ones.
    """
    # Files a.csv (user, item, time, rating), b.csv (no rows), c.csv (user, item, time, rating, note):
    # a.csv decides on rating, b.csv has None, c.csv must have rating and loses note.
    plan: list[tuple[RawFile, LogColumns | None]] = []
    decided: LogColumns | None = None
    for file in files:
        head = sample(file)
        columns = None
        if head is not None:
            wanted = {**settings.mapping, **(decided.actions if decided else {})}
            if file.partition:
                named = {**wanted, **{name: name for name in settings.rows.where}}
                constants = needed_partition(head.column_names, file.partition, named, LOG_NAMES)
                file = replace(file, constants=constants)
                for name, value in constants.items():
                    head = head.append_column(name, pa.repeat(pa.scalar(value), len(head)))
            guess = settings.guess_actions and not decided
            asked = () if decided else (*settings.minimum, *settings.actions)
            columns = recognise_log(
                head, wanted, file.name, guess_actions=guess, filters=settings.rows.where, asked=asked
            )
            decided = decided or columns
        plan.append((file, columns))
    return plan


def _type(
    chunk: Chunk,
    names: LogColumns,
    settings: LogSettings,
    ids: Mapping[str, IdColumn],
    times: TimeColumn,
    items: StagedItems | None,
) -> tuple[list[pa.Array], list[Complaint], dict[str, pa.Array], np.ndarray]:
    """Return the chunk's columns after source_row, typed, what is wrong with them, and two more about each row.

    These are, for each action, which optional values are no numbers (a mask, bool per row), and the row of the item
    among those of the item file, -1 for one that it does not list; nothing without an item file.
    """
    user, item, time, *actions = (chunk.table[name].combine_chunks() for name in names.wanted)
    user, wrong_users = ids["user"].read(user)
    item, wrong_items = ids["item"].read(item)
    microseconds, wrong_times = times.read(time)
    complaints = [*wrong_users, *wrong_items, *wrong_times]
    rows = np.zeros(0, np.int64)
    if items:
        item, rows = as_listed(item, items.index)
        item = plain_unknown(item, pa.array(rows >= 0)) if settings.keep_unknown else item
    arrays = [user, item, microseconds]
    odd = {}
    for name, text in zip(names.actions, actions, strict=True):
        values, wrong, odd[name] = number_column(text, name, required=name in settings.minimum)
        arrays.append(values)
        complaints += wrong
    if items and not settings.keep_unknown:
        complaints.append((pa.array(rows < 0), f"item is not in {items.source}"))
    return arrays, complaints, odd, rows
