"""Write cut.parquet: the users and items that ingest left out, with the rows and interactions that they had.

`recommend`, `explain` and `sids` read the file (`pipeline/raw_ids.py`, `naming_the_cut`), to tell an id that was left
out from one that was never there.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
from ibis import _
from ibis.expr.types import Table

BATCH_ROWS = 1_000_000  # rows of a row group, and about as many are in memory at once
SCHEMA = pa.schema([("kind", pa.string()), ("raw_id", pa.string()), ("rows", pa.int64()), ("interactions", pa.int64())])


def cut_ids(column: str, *, log: Table, names: Table, counted: Table, left: Table, listed: bool) -> Table:
    """Return raw_id, rows and interactions of the users or items that are not left, in the order of the source.

    Args:
        column: `user` or `item`.
        log: the staged log; its raw ids, and its number of rows of each.
        names: raw_id and source_row, the integer that stands for the raw id.
        counted: the interactions before the k-core, by these integers.
        left: the interactions after it.
        listed: an item file lists all names; one that has no row in the log is then left out too.
    """
    rows = log.group_by(raw_id=column).agg(rows=_.count(), first=_.source_row.min())
    if listed:
        of_names = names.select(listed_id="raw_id", listed_row="source_row")
        rows = of_names.left_join(rows, of_names.listed_id == rows.raw_id)
        rows = rows.select(raw_id="listed_id", rows=ibis.coalesce(rows.rows, 0), first="listed_row")
    numbers = counted.group_by(code=column).agg(interactions=_.count())
    stays = left.select(stay=column).distinct()
    known = names.select(known_id="raw_id", known_row="source_row")
    known = known.left_join(numbers, known.known_row == numbers.code).left_join(stays, known.known_row == stays.stay)
    known = known.select("known_id", "interactions", "stay")
    found = rows.left_join(known, rows.raw_id == known.known_id).filter(_.stay.isnull())
    found = found.mutate(interactions=ibis.coalesce(_.interactions, 0))
    return found.order_by("first", "raw_id").select("raw_id", "rows", "interactions")


def write_cut(path: Path, tables: Sequence[Table], metadata: Mapping[str, str]) -> None:
    """Write the tables of users and of items (`cut_ids`), a batch at a time; equal content gives equal bytes."""
    schema = SCHEMA.with_metadata(dict(metadata))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for kind, table in zip(("user", "item"), tables, strict=True):
            for part in _batches(table):
                kinds = pa.array([kind], pa.string()).take(pa.array([0] * len(part)))
                writer.write_table(pa.table([kinds, *part.columns], schema=schema))


def _batches(table: Table) -> Iterator[pa.Table]:
    """Yield the rows in parts of `BATCH_ROWS`, however many the engine gives at once."""
    kept = pa.schema(list(SCHEMA)[1:]).empty_table()
    for batch in table.to_pyarrow_batches(chunk_size=BATCH_ROWS):
        kept = pa.concat_tables([kept, pa.Table.from_batches([batch]).cast(kept.schema)])
        while len(kept) >= BATCH_ROWS:
            yield kept.slice(0, BATCH_ROWS).combine_chunks()
            kept = kept.slice(BATCH_ROWS)
    if len(kept):
        yield kept.combine_chunks()
