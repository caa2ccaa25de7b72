"""The engine's results come block by block, whatever a column of text holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.ingest import engines
from pipeline.ingest.engines import Engine


class Narrow:
    """A table whose blocks hold so many bytes of text at most, as DuckDB's hold 2 GiB."""

    def __init__(self, table: ibis.Table, limit: int):
        self.table = table
        self.limit = limit
        self.sizes: list[int] = []

    def schema(self) -> Any:
        return self.table.schema()

    def to_pyarrow_batches(self, *, chunk_size: int) -> Iterator[pa.RecordBatch]:
        self.sizes.append(chunk_size)
        rows = self.table.to_pyarrow()
        for start in range(0, len(rows), chunk_size):
            (batch,) = rows.slice(start, chunk_size).combine_chunks().to_batches()
            if batch["text"].nbytes > self.limit:
                raise OSError(f"Arrow Appender: The {engines.TOO_MUCH_TEXT} for regular string buffers is {self.limit}")
            yield batch


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(ibis.duckdb.connect(), tmp_path)


def test_a_block_with_too_much_text_is_read_in_smaller_ones(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BLOCK_ROWS", 1600)
    monkeypatch.setattr(engines, "LEAST_ROWS", 10)
    texts = [f"{row} " + "x" * (1000 if 2000 < row < 2600 else 10) for row in range(5000)]
    plain = engine.backend.create_table("texts", pa.table({"row": range(5000), "text": texts})).order_by("row")
    expected = engine.rows(plain).read()
    assert expected["text"].to_pylist() == texts
    narrow = Narrow(plain, 100_000)
    assert engine.rows(narrow).read() == expected
    assert narrow.sizes == [1600, 200, 25]
    with pytest.raises(UserError, match="the texts of 10 items have more than 2 GiB together"):
        engine.rows(Narrow(plain, 500)).read()


@pytest.mark.long
def test_texts_of_more_than_two_gibibytes_are_read(engine: Engine) -> None:
    table = engine.backend.sql("SELECT i, repeat('x', 25000) AS text FROM range(100000) r(i)").order_by("i")
    seen = 0
    for block in engine.rows(table).blocks():
        assert block["i"].to_pylist() == list(range(seen, seen + len(block)))
        assert block["text"][0].as_py() == "x" * 25000
        seen += len(block)
    assert seen == 100_000
