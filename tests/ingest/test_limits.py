"""A small file cannot ask for much memory, time or disk: each limit ends in a reject or in one clear line."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import Ingest, csv_text, interactions, jsonl_text, write

from pipeline.errors import UserError
from pipeline.ingest import lines, parquet_limits
from pipeline.ingest.chunks import MAX_COLUMNS
from pipeline.ingest.readers import read_chunks, sample
from pipeline.ingest.recipes import CSV, JSONL, PARQUET, TSV
from pipeline.ingest.sources import Limits, RawFile

MIB = 1 << 20
Reject = tuple[int, str, str]


def rows_of(file: RawFile) -> tuple[int, list[Reject]]:
    rejects: list[Reject] = []
    return sum(len(chunk.lines) for chunk in read_chunks(file, lambda *reject: rejects.append(reject))), rejects


def peak(call: Any, *arguments: Any) -> int:
    """Most bytes that Python's and NumPy's allocators and Arrow's pool held in a call that may be refused."""
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    tracemalloc.start()
    try:
        call(*arguments)
    except UserError:
        pass
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return int(most + pool.bytes_allocated() - before)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_that_is_too_long_is_a_reject_and_the_rows_around_it_stay(name: str, tmp_path: Path) -> None:
    text = '{"a": 1}\n{"a": "' + "é" * 5000 + '"}\n\n{"a": 2}\n' + "x" * 70_000
    path = write(tmp_path / name, text)
    for limit in (1000, 1001, 1002, 9999):
        rows, rejects = rows_of(RawFile(path, name, JSONL, limits=Limits(line_bytes=limit)))
        assert rows == 2
        assert [(line, reason) for line, reason, _ in rejects] == [
            (2, "longer than ingest.max_line_bytes"),
            (5, "longer than ingest.max_line_bytes"),
        ]
    exact = RawFile(write(tmp_path / "b.jsonl", '{"a": 1}\n{"a": 1}'), "b", JSONL, limits=Limits(9))
    assert rows_of(exact) == (2, [])


def test_a_line_of_a_gzip_bomb_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", 1) as file:
        for _ in range(60):
            file.write(b"x" * MIB)
    assert peak(rows_of, RawFile(path, "a", JSONL, limits=Limits(line_bytes=MIB))) < 16 * MIB


@pytest.mark.parametrize(
    ("form", "line"), [(JSONL, b'{"a": 1}\n'), (JSONL, b"x" * 100), (JSONL, b"\n"), (CSV, b"1,2\n"), (TSV, b"\n")]
)
def test_a_gzip_file_that_unpacks_to_too_much_is_named(form: Any, line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(line * 300_000, 1))
    with pytest.raises(UserError, match=r"a\.gz unpacks to more than ingest\.max_file_bytes, 200,000 bytes"):
        rows_of(RawFile(path, "a.gz", form, limits=Limits(100_000, 200_000)))


def test_a_file_has_no_more_columns_than_any_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"c{n}" for n in range(MAX_COLUMNS + 1)]
    many = write(tmp_path / "a.csv", ",".join(names) + "\n")
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.table({name: pa.array([1]) for name in names}), parquet)
    monkeypatch.setattr(lines, "CHUNK_ROWS", 50)
    keys = write(tmp_path / "a.jsonl", jsonl_text([{f"k{row}_{n}": 1 for n in range(300)} for row in range(50)]))
    for path, form in ((many, CSV), (parquet, PARQUET), (keys, JSONL)):
        with pytest.raises(UserError, match="has more than 10,000 columns"):
            sample(RawFile(path, path.name, form))


def test_long_lines_make_smaller_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "CHUNK_CHARACTERS", 1000)
    path = write(tmp_path / "a.jsonl", jsonl_text([{"a": "x" * 400}] * 10))
    chunks = list(read_chunks(RawFile(path, "a", JSONL), lambda *_: None))
    assert [len(chunk.lines) for chunk in chunks] == [3, 3, 3, 1]
    assert [record for chunk in chunks for record in chunk.records] == list(range(10))


# ---------------------------------------------------------------------------------------------------- Parquet


def repeated(path: Path, value: Any, rows: int = 20_000, **options: Any) -> RawFile:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    table = pa.table({"user": column if options.pop("packed", True) else column.dictionary_decode()})
    pq.write_table(table, path, compression="zstd", **options)
    return RawFile(path, path.name, PARQUET)


def test_values_that_repeat_come_in_chunks_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_limits, "CHUNK_BYTES", 10 * MIB)
    file = repeated(tmp_path / "a.parquet", "x" * MIB, 500, store_schema=False)
    assert file.path.stat().st_size < 5_000
    assert {len(chunk.lines) for chunk in read_chunks(file, lambda *_: None)} == {10}
    assert peak(rows_of, file) < 60 * MIB


def test_a_value_longer_than_a_line_is_refused(tmp_path: Path) -> None:
    file = repeated(tmp_path / "a.parquet", "x" * 5 * MIB, 10, store_schema=False)
    with pytest.raises(UserError, match="a value of the column user has 5,242,880 bytes"):
        rows_of(file)


def test_plain_values_that_compress_well_come_in_smaller_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_limits, "CHUNK_BYTES", 10 * MIB)
    file = repeated(tmp_path / "a.parquet", "x" * MIB, 40, packed=False, use_dictionary=False)
    sizes = [len(chunk.lines) for chunk in read_chunks(file, lambda *_: None)]
    assert sum(sizes) == 40
    assert max(sizes) <= 10


def test_a_file_that_declares_endless_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"user": pa.nulls(5_000_000, pa.int64())}), path)
    with pytest.raises(UserError, match="it declares 5,000,000 rows"):
        rows_of(RawFile(path, path.name, PARQUET, limits=Limits(file_bytes=4_999_999)))


def test_texts_read_as_a_dictionary_are_the_same_texts(tmp_path: Path) -> None:
    texts = [f"{n % 700} " + "é" * (n % 90) for n in range(30_000)] + [None, ""]
    path = tmp_path / "a.parquet"
    table = pa.table({"user": texts, "n": range(len(texts)), "s": [{"user": text} for text in texts]})
    pq.write_table(table, path)
    chunks = [chunk.table for chunk in read_chunks(RawFile(path, path.name, PARQUET), lambda *_: None)]
    assert pa.concat_tables(chunks)["user"].to_pylist() == texts
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    again = [chunk.table for chunk in read_chunks(RawFile(packed, packed.name, PARQUET), lambda *_: None)]
    assert again == chunks
    with pytest.raises(UserError, match="unpacks to more than"):
        rows_of(RawFile(packed, packed.name, PARQUET, limits=Limits(file_bytes=1000)))


@pytest.mark.parametrize("every", [31, pytest.param(2, marks=pytest.mark.long)])
def test_every_flipped_byte_of_a_footer_ends_in_rows_or_a_clear_line(tmp_path: Path, every: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"user": ["a", "b"] * 20, "item": [["x"], None] * 20, "time": [1.5, 2.5] * 20}), path)
    whole = path.read_bytes()
    for position in range(0, len(whole), every):
        for mask in (0x01, 0xFF):
            content = bytearray(whole)
            content[position] ^= mask
            path.write_bytes(content)
            try:
                rows_of(RawFile(path, path.name, PARQUET))
            except UserError as error:
                assert "\n" not in error.what  # noqa: PT017 - either end is right


def test_the_limits_are_settings(ingest: Ingest, tmp_path: Path) -> None:
    rows = [{"user": user, "item": item, "time": time} for user, item, time in interactions()]
    path = write(tmp_path / "log.jsonl", jsonl_text(rows) + json.dumps({"user": "x" * 70_000}) + "\n")
    summary = ingest(path, max_line_bytes=65_536, max_reject_rate=0.5).summary
    assert summary["rejects"] == {"longer than ingest.max_line_bytes": 1}
    packed = write(tmp_path / "log.csv.gz", csv_text(interactions()) * 200)
    with pytest.raises(UserError, match=r"log\.csv\.gz unpacks to more than"):
        ingest(packed, max_line_bytes=65_536, max_file_bytes=65_536, max_reject_rate=1.0)
