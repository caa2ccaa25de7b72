"""Items of the log that the item file does not list, where `ingest.unknown_items` is keep."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.ingest.item_file import StagedItems
from pipeline.ingest.staging import StagedLog


def add_unknown(items: StagedItems, log: StagedLog) -> Counter[str]:
    """Add the log's items that the file does not list, without texts, after the listed ones.

    Returns:
        The rows of the log for each item that was added, in the order of its first row.
    """
    rows: Counter[str] = Counter()
    with pq.ParquetFile(log.path, pre_buffer=False) as file:
        for batch in file.iter_batches(columns=["item"]):
            ids = batch["item"]
            rows.update(ids.filter(pc.invert(items.index.has(ids))).to_pylist())
    if not rows:
        return rows
    table = pq.read_table(items.path)
    # Their records come after those of the file, which are also the rows of the file's item vectors.
    first = max(items.read, (pc.max(table["source_row"]).as_py() or 0) + 1)
    names = pa.array(rows, pa.string())
    added = pa.table({"source_row": pa.array(range(first, first + len(rows)), pa.int64()), "raw_id": names})
    pq.write_table(pa.concat_tables([table, added], promote_options="default"), items.path)
    return rows
