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


def cut_ids(column: str, *, names: Table, counted: Table, left: Table, listed: Table | None = None) -> Table:
    """Return raw_id, rows and interactions of the users or items that are not left, in the order of the source.

    Args:
        column: `user` or `item`.
        names: raw_id (or code, the source_row of `listed`), rows, first and source_row of each in the log, as clean.py
            finds them.
        counted: the interactions before the k-core, by source_row.
        left: a row for each one that is left, by source_row.
        listed: raw_id and source_row of all items that an item file lists; one without a row in the log is left out.
    """
    if listed is None:
        known = names.select("raw_id", "rows", "first", code="source_row")
    else:
        key = "code" if "code" in names.columns else "raw_id"
        of_log = names.select(logged=key, rows="rows")
        known = listed.select("raw_id", code="source_row")
        known = known.left_join(of_log, known[key] == of_log.logged)
        known = known.select("raw_id", "code", rows=ibis.coalesce(_.rows, 0), first=_.code)
    numbers = counted.group_by(counted=column).agg(interactions=_.count())
    stays = left.select(stay=column)
    found = known.left_join(numbers, known.code == numbers.counted)
    found = found.left_join(stays, found.code == stays.stay).filter(_.stay.isnull())
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
