"""Read an item file: its rows become typed Parquet in the scratch folder, and bad rows become rejects."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import image_names
from pipeline.errors import UserError
from pipeline.ingest.columns import ITEM_NAMES, needed_partition, recognise_items
from pipeline.ingest.id_index import IdIndex
from pipeline.ingest.ids import IdColumn, rewrite_ids, whole_numbers
from pipeline.ingest.listed_items import ListedItems
from pipeline.ingest.readers import read_chunks, sample
from pipeline.ingest.recipes import DatasetRecipe
from pipeline.ingest.rejects import Rejects
from pipeline.ingest.sources import RawFile
from pipeline.ingest.values import reasons
from pipeline.progress import Progress
from pipeline.raw_times import Complaint

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

    def source_rows(self) -> np.ndarray:
        """Return the source_row of each id of `index`, int64."""
        rows: np.ndarray = pq.read_table(self.path, columns=["source_row"])["source_row"].to_numpy()
        return rows


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

    Few item files list an item twice, so a first reading does not look for that. Where its good rows have an id twice,
    or some rows with an id are not good, the file is read again, row against row.

    Args:
        files: the parts of the file, in order.
        source: what messages call the file.
        null_words: texts that are no id.

    Raises:
        UserError: no rows, no item column, or the file cannot be read.
    """
    plan = [(file, recipe.item_columns) if recipe else _recognise(file, mapping) for file in files]
    if not any(columns for _, columns in plan):
        raise _no_items(files, source, rejects)
    read = partial(_read_items, plan, recipe.categories if recipe else None, rejects, path, null_words)
    found = read(ListedItems([]))
    index = IdIndex(found.ids)
    repeated = index.repeated()
    if found.with_id > len(found.ids) or repeated:
        rejects.forget([file.name for file in files])
        # A row that is not good may list an item that a good row lists again: then all items are compared.
        found = read(ListedItems(repeated if found.with_id == len(found.ids) else None))
        index = IdIndex(found.ids)
    copies = found.copies
    if found.column.to_rewrite:
        ids, more = _join_numbers(path, found.ids, found.origins, rejects)
        index = IdIndex(ids)
        copies += more
    count = len(index.ids) + copies + rejects.total([file.name for file in files])
    return StagedItems(path=path, source=source, index=index, read=count, trimmed=found.column.trimmed, copies=copies)


@dataclass(frozen=True)
class _Read:
    """The ids of the good rows of an item file as one reading found them, and where each came from."""

    ids: pa.Array
    origins: list[RowLines]
    column: IdColumn
    with_id: int  # rows that have an id, good or not
    copies: int  # rows that are equal to an earlier one


def _read_items(
    plan: Sequence[tuple[RawFile, Mapping[str, str] | None]],
    make_categories: Callable[[pa.Table], pa.Array] | None,
    rejects: Rejects,
    path: Path,
    null_words: Sequence[str],
    listed: ListedItems,
) -> _Read:
    """Write the good rows of the files to `path`, and the others to the rejects."""
    names = dict.fromkeys(name for _, columns in plan for name in columns or ())
    texts = list(dict.fromkeys(name for name in (*ITEM_NAMES, *names) if name != "item"))
    schema = pa.schema([("source_row", pa.int64()), *((name, pa.string()) for name in ("raw_id", *texts))])
    column = IdColumn("item", null_words)
    accepted = []
    origins: list[RowLines] = []  # of the good rows
    with_id = 0
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
                with_id += pc.sum(has_id).as_py() or 0
                copies = listed.add(pc.if_else(has_id, fields["item"], None), arrays)
                named = [columns[name] for name in ("item", "image") if name in columns]
                complaints = [*wrong_ids, *_item_complaints(fields, listed.twice, copies)]
                usable = pc.and_(rejects.usable(file, chunk, complaints, named), pc.invert(copies))
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
    return _Read(ids, origins, column, with_id, listed.copies)


def _join_numbers(path: Path, ids: pa.Array, origins: Sequence[RowLines], rejects: Rejects) -> tuple[pa.Array, int]:
    """Write the ids of the staged items at `path` as whole numbers; "7" and "7.0" are one item.

    Returns:
        The ids that stay, and how many rows were copies of an earlier row. A row that lists an item again with other
        texts goes to the rejects.
    """
    rewrite_ids(path, ["raw_id"])
    numbers = whole_numbers(ids)
    repeated = IdIndex(numbers).repeated()
    if not repeated:
        return numbers, 0
    listed = ListedItems(repeated)
    table = pq.read_table(path)
    texts = table.drop_columns(["source_row", "raw_id"])
    copies = listed.add(numbers, {name: texts[name] for name in texts.column_names})
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
