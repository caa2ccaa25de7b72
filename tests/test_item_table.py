"""items.parquet by columns equals pandas on the whole file, and what is not asked for is not read."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline import item_table
from pipeline.artifacts import write_parquet
from pipeline.errors import UserError
from pipeline.item_table import ItemTable


@pytest.mark.parametrize("rows", [7, 1000])
def test_numbers_of_a_column_are_those_of_factorize(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_table, "ROWS", rows)
    rng = np.random.default_rng(0)
    texts = [None if number == 0 else f"c{number}" for number in rng.integers(0, 9, 200)]
    frame = pd.DataFrame({"item_id": np.arange(200), "raw_id": [f"i{n}" for n in range(200)], "categories": texts})
    frame["title"] = None
    write_parquet(tmp_path / "items.parquet", frame)
    items = ItemTable(tmp_path / "items.parquet")
    assert len(items) == len(items.raw_ids) == 200
    numbers = items.numbered("categories")
    assert numbers is not None
    assert numbers.dtype == np.int32
    assert numbers.tolist() == frame["categories"].factorize()[0].tolist()
    assert items.numbered("title") is None
    assert items.numbered("image") is None
    assert [items.raw_ids[item] for item in (0, 199)] == ["i0", "i199"]
    blocks = list(items.blocks(["raw_id", "item_id"]))
    assert max(map(len, blocks)) <= rows
    assert pa.concat_tables(blocks).equals(items.read(["raw_id", "item_id"]))
    assert items.read(["title", "raw_id", "image"]).column_names == ["title", "raw_id"]


def test_the_file_that_was_opened_is_read_even_after_another_took_its_name(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    write_parquet(path, pa.table({"raw_id": ["a", "b"]}))
    items = ItemTable(path)
    write_parquet(path, pa.table({"raw_id": ["c"]}))
    assert items.read(["raw_id"])["raw_id"].to_pylist() == ["a", "b"]


def test_a_damaged_or_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    with pytest.raises(UserError, match=r"items.parquet is not here"):
        ItemTable(path)
    path.write_bytes(b"PAR1 no table")
    with pytest.raises(UserError, match=r"items.parquet cannot be read"):
        ItemTable(path)
