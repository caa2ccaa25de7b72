"""First half of the stage: write raw files as typed Parquet into the scratch folder, and bad rows as rejects.

The files are read once, in bounded memory. The steps that follow (filters, k-core, ids) are relational: see clean.py.
"""

import html
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import image_names
from pipeline.errors import UserError
from pipeline.ingest.ahead import read_ahead
from pipeline.ingest.chunks import Chunk
from pipeline.ingest.columns import (
    ITEM_NAMES,
    LOG_NAMES,
    LogColumns,
    check_actions,
    needed_partition,
    recognise_items,
    recognise_log,
)
from pipeline.ingest.id_index import IdIndex
from pipeline.ingest.ids import IdColumn, as_listed, plain_unknown, rewrite_ids, whole_numbers
from pipeline.ingest.listed_items import ListedItems
from pipeline.ingest.readers import read_chunks, sample
from pipeline.ingest.recipes import DatasetRecipe
from pipeline.ingest.rejects import Rejects
from pipeline.ingest.sources import RawFile
from pipeline.ingest.staged_file import StagedFile
from pipeline.ingest.values import number_column, reasons
from pipeline.ingest.where import RowFilter
from pipeline.progress import Progress
from pipeline.raw_times import Complaint, TimeColumn

INTERACTION = (("source_row", pa.int64()), ("user", pa.string()), ("item", pa.string()), ("timestamp", pa.int64()))
RESERVED = ("source_row", "item_id", "raw_id", "vector")  # columns of items.parquet, left out of an item file

# &amp; &#39; &#x27; with its semicolon: "R&D" and "&copy" are no entities.
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


RowLines = tuple[RawFile, np.ndarray]  # a file, and the lines of some of its rows


@dataclass(frozen=True, kw_only=True)
class StagedItems:
    """The item file as Parquet: source_row (int64, the record), raw_id, then text columns, null where empty."""

    path: Path
    source: str
    index: IdIndex  # raw ids of the good rows
    read: int  # rows of the file, rejected ones and copies included
    trimmed: int  # good rows whose id had blanks around it
    copies: int  # rows that are equal to an earlier one


@dataclass(frozen=True)
class StagedLog:
    """The log's good rows as Parquet: source_row (int64), user, item, timestamp (microseconds), then the actions."""

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


# ------------------------------------------------------------------------------------------------ items


def stage_items(
    files: Sequence[RawFile],
    source: str,
    recipe: DatasetRecipe | None,
    mapping: Mapping[str, str],
    rejects: Rejects,
    *,
    path: Path,
    null_words: Sequence[str],
) -> StagedItems:
    """Read an item file; without a recipe its columns are recognised, with the help of `ingest.columns` (`mapping`).

    Args:
        files: the parts of the file, in order.
        source: what messages call the file.
        null_words: texts that are no id.

    Raises:
        UserError: no rows, no item column, or the file cannot be read.
    """
    plan = [(file, recipe.item_columns) if recipe else _recognise(file, mapping) for file in files]
    make_categories = recipe.categories if recipe else None
    if not any(columns for _, columns in plan):
        raise _no_items(files, source, rejects)
    names = dict.fromkeys(name for _, columns in plan for name in columns or ())
    texts = list(dict.fromkeys(name for name in (*ITEM_NAMES, *names) if name != "item"))
    schema = pa.schema([("source_row", pa.int64()), *((name, pa.string()) for name in ("raw_id", *texts))])
    listed = ListedItems()
    column = IdColumn("item", null_words)
    accepted = []
    origins: list[RowLines] = []  # of the good rows
    first = 0  # source_row of the file's first row
    with pq.ParquetWriter(path, schema) as writer, Progress("ingest: items", 0, "rows") as progress:
        for file, columns in plan:
            wanted = None if make_categories or columns is None else list(dict.fromkeys(columns.values()))
            last = -1  # number of the file's last row
            for chunk in read_chunks(file, rejects.of(file), wanted):
                assert columns is not None  # a file without columns has no chunks
                # The file's columns under our names: {"item": asin, "title": title, ...}
                fields = {ours: chunk.table[theirs].combine_chunks() for ours, theirs in columns.items()}
                if make_categories:
                    fields["categories"] = make_categories(chunk.table)
                arrays = {name: _item_text(name, fields.get(name), len(chunk.lines)) for name in texts}

                # Copies of earlier rows are dropped, rows with a complaint go to the rejects, the others are written.
                written = fields["item"]
                fields["item"], wrong_ids = column.read(written)
                has_id = pc.is_null(reasons(wrong_ids, len(chunk.lines)))
                copies = listed.add(pc.if_else(has_id, fields["item"], None), arrays)
                named = [columns[name] for name in ("item", "image") if name in columns]
                complaints = [*wrong_ids, *_item_complaints(fields, listed.twice, copies)]
                usable = pc.and_(_usable(file, chunk, complaints, rejects, named), pc.invert(copies))
                rows = [pa.array(first + chunk.records), fields["item"], *arrays.values()]
                good = pa.table(rows, schema=schema).filter(usable)
                writer.write_table(good)
                column.accept(written.filter(usable), fields["item"].filter(usable))
                accepted.append(good["raw_id"].combine_chunks().cast(pa.large_string()))
                origins.append((file, chunk.lines[usable.to_numpy(zero_copy_only=False)]))
                last = int(chunk.records[-1])
                progress.update(len(usable))
            first += last + 1
    ids = pa.concat_arrays(accepted) if accepted else pa.array([], pa.large_string())
    copies_found = listed.copies
    if column.to_rewrite:
        ids, more = _join_numbers(path, ids, origins, rejects)
        copies_found += more
    read = len(ids) + copies_found + rejects.total([file.name for file in files])
    index = IdIndex(ids)
    return StagedItems(path=path, source=source, index=index, read=read, trimmed=column.trimmed, copies=copies_found)


def _join_numbers(path: Path, ids: pa.Array, origins: Sequence[RowLines], rejects: Rejects) -> tuple[pa.Array, int]:
    """Write the ids of the staged items at `path` as whole numbers; "7" and "7.0" are one item.

    Returns:
        The ids that stay, and how many rows were copies of an earlier row. A row that lists an item again with other
        texts goes to the rejects.
    """
    rewrite_ids(path, ["raw_id"])
    numbers = whole_numbers(ids)
    listed = ListedItems()
    table = pq.read_table(path)
    texts = table.drop_columns(["source_row", "raw_id"])
    copies = listed.add(numbers, {name: texts[name].combine_chunks() for name in texts.column_names})
    stays = pc.invert(pc.or_(copies, listed.twice))
    if not pc.all(stays, min_count=0).as_py():
        lines = [(file, int(line)) for file, lines_G in origins for line in lines_G]
        for row in pc.indices_nonzero(listed.twice).to_pylist():
            file, line = lines[row]
            rejects.of(file)(line, "item is listed twice", ids[row].as_py())
        pq.write_table(table.filter(stays), path)
    return numbers.filter(stays), listed.copies


def _recognise(file: RawFile, mapping: Mapping[str, str]) -> tuple[RawFile, Mapping[str, str] | None]:
    """Return the file, and our name -> the item file's; None for a file without a good row."""
    head = sample(file)
    if head is None:
        return file, None
    file = replace(file, constants=needed_partition(head.column_names, file.partition, mapping, ITEM_NAMES))
    columns = recognise_items([*head.column_names, *file.constants], mapping, file.name)
    return file, {ours: theirs for ours, theirs in columns.items() if ours not in RESERVED}


def _no_items(files: Sequence[RawFile], source: str, rejects: Rejects) -> UserError:
    """Read an item file without a good row to its end and say what is wrong with the rows."""
    for file in files:
        for _ in read_chunks(file, rejects.of(file)):
            pass
    names = [file.name for file in files]
    reasons = rejects.commonest(names)
    return UserError(
        f"{source} holds no readable rows",
        "this file should list the items of the log"
        + (f"; {rejects.total(names):,} rows cannot be read:\n" + "\n".join(reasons) if reasons else ""),
        rejects.hint(names) or "check that the file was written to the end, or move it away",
    )


def _item_complaints(fields: Mapping[str, pa.Array], twice: pa.Array, copies: pa.Array) -> list[Complaint]:
    """Find what is wrong with the rows of an item chunk; a copy of an earlier row is right."""
    complaints: list[Complaint] = [(twice, "item is listed twice")]
    if "image" in fields:
        leaves = [leaves_folder(path) for path in fields["image"].to_pylist()]
        complaints.append((pa.array(leaves), "image lies outside the dataset folder"))
    return [(pc.and_not(pc.fill_null(mask, False), copies), reason) for mask, reason in complaints]


def leaves_folder(cell: str | None) -> bool:
    """Tell whether a path that the data give could name a file outside the dataset folder, on any operating system."""
    paths = [PureWindowsPath(name) for name in image_names(cell)]  # splits at / and at \
    return any(path.anchor or ".." in path.parts for path in paths)


def _item_text(name: str, column: pa.Array | None, rows: int) -> pa.Array:
    """Return a text column with HTML's entities decoded, and with null where it is empty or where there is no column.

    The path of an image stays as it is.
    """
    if column is None:
        return pa.nulls(rows, pa.string())
    if name != "image" and pc.any(pc.match_substring(column, "&")).as_py():
        column = pa.array([text and ENTITY.sub(_character, text) for text in column.to_pylist()], pa.string())
    return pc.if_else(pc.equal(column, ""), None, column)


def _character(entity: re.Match[str]) -> str:
    return html.unescape(entity[0])


# ------------------------------------------------------------------------------------------------ log


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

    # source_row counts through all files: a first file of 3 rows has 0, 1, 2, the second file begins with 3.
    accepted = 0
    not_numbers: Counter[str] = Counter()
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
                arrays, complaints, odd = _type(chunk, names, settings, ids, times, items)
                usable = _usable(file, chunk, complaints, rejects, names.wanted)
                staged.add(pa.table([pa.array(first + chunk.records), *arrays], schema=schema).filter(usable))
                for column, name, array in zip(ids.values(), names.wanted, arrays, strict=False):
                    column.accept(chunk.table[name].combine_chunks().filter(usable), array.filter(usable))
                accepted += pc.sum(usable).as_py() or 0
                not_numbers.update({name: pc.sum(pc.and_(mask, usable)).as_py() for name, mask in odd.items()})
            first += last + 1
    read = accepted + rejects.total([file.name for file in files]) + settings.rows.not_wanted
    # With an item file the ids of items are already written as that file lists them.
    rewritten = [name for name, column in ids.items() if column.to_rewrite and not (name == "item" and items)]
    if rewritten:
        rewrite_ids(path, rewritten)
    return StagedLog(
        path=path,
        read=read,
        columns=columns.named() if columns else {},
        not_numbers={name: count for name, count in not_numbers.items() if count},
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
            columns = recognise_log(head, wanted, file.name, guess_actions=guess, filters=settings.rows.where)
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
) -> tuple[list[pa.Array], list[Complaint], dict[str, pa.Array]]:
    """Return the chunk's columns after source_row, typed; what is wrong with them; optional values that are no numbers.

    The last is a mask (bool per row) for each action.
    """
    user, item, time, *actions = (chunk.table[name].combine_chunks() for name in names.wanted)
    user, wrong_users = ids["user"].read(user)
    item, wrong_items = ids["item"].read(item)
    microseconds, wrong_times = times.read(time)
    complaints = [*wrong_users, *wrong_items, *wrong_times]
    if items:
        item, listed = as_listed(item, items.index)
        item = plain_unknown(item, listed) if settings.keep_unknown else item
    arrays = [user, item, microseconds]
    odd = {}
    for name, text in zip(names.actions, actions, strict=True):
        values, wrong, odd[name] = number_column(text, name, required=name in settings.minimum)
        arrays.append(values)
        complaints += wrong
    if items and not settings.keep_unknown:
        complaints.append((pc.invert(listed), f"item is not in {items.source}"))
    return arrays, complaints, odd


def _usable(
    file: RawFile, chunk: Chunk, complaints: Sequence[Complaint], rejects: Rejects, named: Sequence[str]
) -> pa.Array:
    """Tell which rows have no complaint (bool per row); the other rows go to the rejects, with the columns `named`."""
    # complaints ([T, F, F], "user is missing"), ([T, T, F], "rating is not a number") ->
    # found ["user is missing", "rating is not a number", null] -> usable [F, F, T]
    found = reasons(complaints, len(chunk.lines))
    usable = pc.is_null(found)

    # row numbers of the bad rows, here 0 and 1, and their text in these columns: "u1,i7,x"
    bad = pc.indices_nonzero(pc.invert(usable)).to_pylist()
    if bad:
        fields = [[text or "" for text in chunk.table[name].take(bad).to_pylist()] for name in named]
        reject = rejects.of(file)
        for i, row in zip(bad, zip(*fields, strict=True), strict=True):
            reject(int(chunk.lines[i]), found[i].as_py(), ",".join(row))
    return usable
