"""Readers: every row of every format as text, with the line on which a text editor shows it."""

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_logs import Ingest, interactions, write

from pipeline.errors import UserError
from pipeline.ingest.lines import MAX_LITERAL, as_text, parse_json, parse_literal
from pipeline.ingest.readers import read_chunks
from pipeline.ingest.recipes import CSV, JSONL, LITERAL, PARQUET, TSV, Format
from pipeline.ingest.sources import Limits, RawFile


def read(
    path: Path, form: Format, max_line_bytes: int = 1 << 22, **options: Any
) -> tuple[list[dict[str, str | None]], list[int], list[int], list[tuple[int, str, str]]]:
    """(rows as dicts, their lines, their record numbers, rejects as (line, reason, row))."""
    rejects = []
    file = RawFile(path, path.name, form, limits=Limits(max_line_bytes))
    chunks = list(read_chunks(file, lambda *reject: rejects.append(reject), **options))
    rows = [row for chunk in chunks for row in chunk.table.to_pylist()]
    lines = [line for chunk in chunks for line in chunk.lines.tolist()]
    return rows, lines, [r for chunk in chunks for r in chunk.records.tolist()], rejects


fields = st.text(st.sampled_from(["a", "7", " ", ",", '"', "\n", "é"]), max_size=4)
tables = st.lists(
    st.one_of(
        st.lists(fields, min_size=3, max_size=3),  # a good row
        st.sampled_from([[], ["lonely"], ["a", "b", "c", "d"], ["two\nlines"]]),  # a blank line, and bad rows
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(rows=tables, block=st.sampled_from([64, 1 << 20]))
def test_csv_lines_are_those_of_an_editor_whatever_breaks_and_bad_rows_come_before(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], block: int
) -> None:
    text, starts = "x,y,z\n", []
    for row in rows:
        starts.append(text.count("\n") + 1)
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(row)
        text += buffer.getvalue() if row else "\n"
    path = write(tmp_path_factory.mktemp("csv") / "log.csv", text)
    found, lines, records, rejects = read(path, CSV, max_line_bytes=block)
    solid = [(row, start) for row, start in zip(rows, starts, strict=True) if any(row)]
    assert [list(row.values()) for row in found] == [row for row, _ in solid if len(row) == 3]
    assert lines == [start for row, start in solid if len(row) == 3]
    assert records == [i for i, (row, _) in enumerate(solid) if len(row) == 3]
    assert [line for line, _, _ in rejects] == [start for row, start in solid if len(row) != 3]


def test_a_bad_csv_row_says_how_many_fields_it_has_and_shows_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "x,y\n1,2\nonly\n3,4\n5,6,7\n")
    assert read(path, CSV)[3] == [
        (3, "1 fields where 2 are expected", "only"),
        (5, "3 fields where 2 are expected", "5,6,7"),
    ]


def test_values_stay_as_written(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "x,y\n007,NA\n1e3,null\n")
    assert read(path, CSV)[0] == [{"x": "007", "y": "NA"}, {"x": "1e3", "y": "null"}]


def test_a_byte_order_mark_belongs_to_no_value(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "\ufeffx,y\n1,2\n"), CSV)[0] == [{"x": "1", "y": "2"}]
    assert read(write(tmp_path / "a.jsonl", '\ufeff{"x": 1}\n'), JSONL)[0] == [{"x": "1"}]


def test_tsv_and_gzip(tmp_path: Path) -> None:
    assert read(write(tmp_path / "log.tsv.gz", "x\ty\na, b\tc\n"), TSV)[0] == [{"x": "a, b", "y": "c"}]


def test_a_separator_of_two_characters(tmp_path: Path) -> None:
    form = Format("separated", "::", "latin-1", ("x", "y"))
    rows, lines, _, rejects = read(write(tmp_path / "a.dat", "1::Amélie\n\n2\n3::b\n", "latin-1"), form)
    assert rows == [{"x": "1", "y": "Amélie"}, {"x": "3", "y": "b"}]
    assert lines == [1, 4]
    assert rejects == [(3, "1 fields where 2 are expected", "2")]


def test_json_lines(tmp_path: Path) -> None:
    text = '{"x": 1, "t": 1.50}\n\n{"x": \n[1]\n{"x": "b", "more": true}\n'
    rows, lines, records, rejects = read(write(tmp_path / "a.jsonl", text), JSONL)
    assert rows == [{"x": "1", "t": "1.50", "more": None}, {"x": "b", "t": None, "more": "1"}]
    assert lines == [1, 5]
    assert records == [0, 3]
    assert rejects == [(3, "broken JSON", '{"x": '), (4, "not a JSON object", "[1]")]


def test_only_the_columns_wanted(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "x,y,z\n1,2,3\n"), CSV, columns=["z", "x"])[0] == [{"z": "3", "x": "1"}]
    assert read(write(tmp_path / "a.jsonl", '{"x": 1, "y": 2}\n'), JSONL, columns=["y", "w"])[0] == [
        {"y": "2", "w": None}
    ]


def test_json_nested_too_deep_is_a_bad_row_and_no_crash() -> None:
    with pytest.raises(ValueError, match="broken JSON"):
        parse_json("[" * 100_000)


@pytest.mark.parametrize("parse", [parse_json, parse_literal])
def test_half_a_character_is_a_bad_row(parse: Callable[[str], dict[str, Any]]) -> None:
    assert parse(r'{"x": "\ud83d\ude00"}')  # a surrogate pair of JSON
    with pytest.raises(ValueError, match="broken Unicode escape"):
        parse(r'{"x": "\ud83d"}')


def test_python_literals_are_read_but_never_run(tmp_path: Path) -> None:
    text = "{'asin': 'B1', 'title': u'It\\'s', 'price': 2.5}\n__import__('os').getcwd()\n"
    path = write(tmp_path / "meta.json", text)
    rows, _, _, rejects = read(path, LITERAL)
    assert rows == [{"asin": "B1", "title": "It's", "price": "2.5"}]
    assert rejects == [(2, "broken Python literal", "__import__('os').getcwd()")]


@pytest.mark.parametrize("text", ["(" * 50_000, "-" * 100_000 + "1", "1+" * 60_000 + "1", "{'a': [", "{[]: 1}", "\0"])
def test_hostile_literals_are_bad_rows_and_no_crash(text: str) -> None:
    with pytest.raises(ValueError, match="broken Python literal"):
        parse_literal(text)


def test_literals_have_a_length_limit() -> None:
    with pytest.raises(ValueError, match="longer than"):
        parse_literal("'" + "a" * MAX_LITERAL + "'")


def test_lists_become_paths() -> None:
    assert as_text(["Beauty", "Nails"]) == "Beauty > Nails"
    assert as_text([["Beauty", "Nails"], ["Gifts"]]) == "Beauty > Nails; Gifts"
    assert as_text([["Beauty", 3, None], "Gifts"]) == "Beauty > 3; Gifts"
    assert as_text({"rank": 3}) is None


def test_parquet_columns_become_text_whatever_their_type(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pd.DataFrame(
        {
            "n": [1, 2],
            "x": [0.5, np.nan],
            "b": [True, False],
            "s": ["a", None],
            "t": pd.to_datetime(["2014-05-13T16:53:20.5", "2014-05-13T16:53:21.0"]),
            "c": [["A", "B"], []],
        }
    ).to_parquet(path)
    first = {"n": "1", "x": "0.5", "b": "1", "s": "a", "t": "2014-05-13 16:53:20.500000", "c": "A > B"}
    rows, lines, _, _ = read(path, PARQUET)
    assert rows[0] == first
    assert rows[1] == {"n": "2", "x": None, "b": "0", "s": None, "t": "2014-05-13 16:53:21.000000", "c": ""}
    assert lines == [1, 2]
    packed = write(tmp_path / "log.parquet.gz", path.read_bytes())
    assert read(packed, PARQUET)[0][0] == first


@pytest.mark.parametrize(("name", "form"), [("a.csv.gz", CSV), ("a.jsonl.gz", JSONL), ("a.parquet.gz", PARQUET)])
@pytest.mark.parametrize("content", [gzip.compress(b'{"x": 1}\n' * 5000)[:-20], b"x,y\n1,2\n"], ids=["cut", "plain"])
def test_a_truncated_or_false_gzip_is_named(tmp_path: Path, name: str, form: Format, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is no complete gzip file"):
        read(path, form)


@pytest.mark.parametrize(
    ("name", "form", "text"),
    [("a.csv", CSV, "x,y\n1,2\n3,Amélie\n"), ("a.jsonl", JSONL, '{"x": 1}\n{"x": 2}\n{"x": "Amélie"}\n')],
)
def test_latin_1_in_a_utf_8_file_is_named_with_its_line(tmp_path: Path, name: str, form: Format, text: str) -> None:
    with pytest.raises(UserError, match=f"{name}, line 3: not valid UTF-8"):
        read(write(tmp_path / name, text, "latin-1"), form)


def test_latin_1_in_a_header_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: not valid UTF-8"):
        read(write(tmp_path / "a.csv", "usér,item\n1,2\n", "latin-1"), CSV)


def test_a_parquet_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read(write(tmp_path / "a.parquet", "x,y\n"), PARQUET)


def test_a_quote_that_swallows_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="never closed"):
        read(write(tmp_path / "a.csv", "x,y\n" + '1,"2\n' + "3,4\n" * 5000), CSV, max_line_bytes=1024)


def test_parquet_text_that_is_not_utf_8_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"x": pa.array([b"a", b"\xff", None], pa.binary()).view(pa.string())}), path)
    assert read(path, PARQUET)[0] == [{"x": "a"}, {"x": None}, {"x": None}]


def test_a_column_that_is_there_twice_in_parquet_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["x", "x"]), tmp_path / "log.parquet")
    with pytest.raises(UserError, match="'x' twice"):
        read(tmp_path / "log.parquet", PARQUET)


def test_a_column_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'x' twice"):
        read(write(tmp_path / "a.csv", "x,y,x\n1,2,3\n"), CSV)


@pytest.mark.parametrize("text", ["", "x,y\n", "x,y"])
def test_a_csv_file_without_rows_has_no_chunk(tmp_path: Path, text: str) -> None:
    assert read(write(tmp_path / "a.csv", text), CSV)[0] == []


def test_arrow_arrays_are_what_chunks_hold(tmp_path: Path) -> None:
    chunk = next(read_chunks(RawFile(write(tmp_path / "a.csv", "x\n1\n"), "a", CSV), lambda *_: None))
    assert chunk.table.schema == pa.schema([("x", pa.string())])


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.jsonl", "log.parquet"])
@pytest.mark.parametrize(("ending", "compressed"), [("", True), ("", False), (".gz", True)])
def test_gzip_is_recognised_by_its_content(
    ingest: Ingest, tmp_path: Path, name: str, ending: str, compressed: bool
) -> None:
    frame = pd.DataFrame(interactions(), columns=["user", "item", "timestamp"])
    if name.endswith("parquet"):
        content = frame.to_parquet()
    elif name.endswith("jsonl"):
        content = frame.to_json(orient="records", lines=True).encode()
    else:
        content = frame.to_csv(index=False, sep="\t" if "tsv" in name else ",").encode()
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert ingest(path).rows == interactions()
