"""JSON in all layouts is found in the content of a file, whatever its name, and read value by value."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_logs import csv_text, interactions, jsonl_text, write
from staged_logs import Stage

import pipeline.ingest.json_stream as json_stream
from pipeline.errors import UserError
from pipeline.ingest.json_stream import BROKEN, json_values

LOG = interactions()
LIMIT = 1 << 22
OBJECTS = [dict(zip(("user", "item", "timestamp"), row, strict=True)) for row in LOG]
LISTED = [{"item": f"i{n}", "title": f"It's [{n}], {{}}", "categories": [["A", "B"]]} for n in range(6)]

LAYOUTS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "lines": jsonl_text,
    "array": json.dumps,
    "one a line": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "commas first": lambda rows: "[" + "\n,".join(map(json.dumps, rows)) + "]",
    "pretty": lambda rows: json.dumps(rows, indent=2),
    "tabs": lambda rows: json.dumps(rows, indent="\t").replace("\n", "\r\n"),
    "pretty objects": lambda rows: "\n".join(json.dumps(row, indent=4) for row in rows),
    "pandas": lambda rows: pd.DataFrame(rows).to_json(orient="records"),
    "literals": lambda rows: "".join(f"{row}\n" for row in rows),
    "Python 2": lambda rows: "".join("{u'" + repr(row)[2:] + "\n" for row in rows),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", [".json", ".jsonl.gz", ".txt", ".csv"])
def test_json_and_literals_are_recognised_in_log_and_item_file(
    read_log: Stage, tmp_path: Path, layout: str, ending: str
) -> None:
    write(tmp_path / "raw" / f"interactions{ending}", LAYOUTS[layout](OBJECTS))
    write(tmp_path / "raw" / f"items{ending}", LAYOUTS[layout](LISTED))
    result = read_log(tmp_path / "raw")
    assert result.rows == LOG
    assert result.read == 36
    items = result.items
    assert list(items.title) == [row["title"] for row in LISTED]
    assert set(items.categories) == {"A > B"}


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (json.dumps({"data": OBJECTS}), "data"),
        (json.dumps({"count": 36, "data": OBJECTS}, indent=1), "data"),
        (json.dumps({"count": 36, "data": OBJECTS * 2000}), "data"),
        (json.dumps({"data": OBJECTS * 2000}, indent=1), "data"),
        (pd.DataFrame(OBJECTS).to_json(), "user"),
        (pd.DataFrame(OBJECTS).to_json(orient="split"), "columns"),
    ],
)
def test_one_object_with_the_rows_inside_is_refused(read_log: Stage, tmp_path: Path, text: str, inside: str) -> None:
    with pytest.raises(UserError, match=r"log\.json is one JSON object") as error:
        read_log(write(tmp_path / "log.json", text))
    assert f"in '{inside}'" in error.value.why
    assert f"'.\"{inside}\"[]'" in error.value.fix


def test_elements_that_are_no_objects_are_rejects(read_log: Stage, tmp_path: Path) -> None:
    result = read_log(write(tmp_path / "log.json", json.dumps([None, *OBJECTS, [1]])), max_reject_rate=0.1)
    assert (result.rows, [reason for _, _, reason in result.rejects]) == (LOG, ["not a JSON object"] * 2)
    lists = [list(row) for row in LOG]
    for text in (json.dumps(lists), "\n".join(map(json.dumps, lists)), json.dumps(lists, indent=1)):
        with pytest.raises(UserError, match="36 of 36 rows") as error:
            read_log(write(tmp_path / "log.json", text))
        assert "lists without names" in error.value.fix


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "::"])
def test_delimited_text_may_be_called_json(read_log: Stage, tmp_path: Path, delimiter: str) -> None:
    assert read_log(write(tmp_path / "log.json", csv_text(LOG).replace(",", delimiter))).rows == LOG


def test_one_row_with_a_list_is_a_row(read_log: Stage, tmp_path: Path) -> None:
    text = json.dumps({**OBJECTS[0], "tags": ["a"]})
    assert read_log(write(tmp_path / "log.json", text), k_core=0).rows == LOG[:1]


def test_a_python_list_is_refused(read_log: Stage, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is one Python list"):
        read_log(write(tmp_path / "log.json", repr(OBJECTS)))


def test_an_array_without_an_end_was_cut_short(read_log: Stage, tmp_path: Path) -> None:
    for end in (-1, -2, -40):
        with pytest.raises(UserError, match="JSON array has no end"):
            read_log(write(tmp_path / "log.json", json.dumps(OBJECTS)[:end]), max_reject_rate=1.0)


@pytest.mark.parametrize("layout", ["array", "one a line", "commas first", "pretty", "pretty objects", "lines"])
@pytest.mark.parametrize("damage", ['"it"em"', '"item" 7', '"item', "\x01item", "item"])
def test_a_broken_element_is_one_reject(read_log: Stage, tmp_path: Path, layout: str, damage: str) -> None:
    rows = [*OBJECTS[:7], {"user": "u9", "item": "i9", "timestamp": 1}, *OBJECTS[7:]]
    text = LAYOUTS[layout](rows)
    at = text.index('"u9"')
    broken = text[:at] + text[at:].replace('"item"', damage, 1)
    result = read_log(write(tmp_path / "log.json", broken), max_reject_rate=0.2)
    assert result.rows == LOG
    line = text.count("\n", 0, text.rindex("{", 0, at)) + 1
    assert result.rejects == [("log.json", line, "broken JSON")]
    assert result.read == 37


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a"\\ü{}[], \n'), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from("abc"), values, max_size=3), max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    block=st.sampled_from([1, 2, 7, 64]),
    array=st.booleans(),
)
def test_values_are_those_of_the_json_module_however_blocks_cut_them(
    rows: list[dict[str, Any]], indent: int | None, block: int, array: bool
) -> None:
    text = json.dumps(rows, indent=indent) if array else "\n".join(json.dumps(row, indent=indent) for row in rows)
    usual, json_stream.BLOCK_CHARACTERS = json_stream.BLOCK_CHARACTERS, block
    try:
        found = list(json_values(io.StringIO(text), "log", LIMIT))
    finally:
        json_stream.BLOCK_CHARACTERS = usual
    assert [value for _, _, value in found] == [json.loads(json.dumps(row), parse_int=str) for row in rows]
    lines = text.split("\n")
    for line, part, _ in found:
        assert part.split("\n")[0] in lines[line - 1]


def test_a_number_at_the_end_of_a_block_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "BLOCK_CHARACTERS", 1)
    assert [value for _, _, value in json_values(io.StringIO("[123, 4.5e1]"), "log", LIMIT)] == ["123", "4.5e1"]


def test_a_value_longer_than_the_limit_is_an_error_and_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "BLOCK_CHARACTERS", 100)
    for limit in (1000, 65_536):
        stream = io.StringIO('[{"a": "' + "b" * 5 * limit)
        with pytest.raises(UserError, match=f"line 1: a JSON value is longer than ingest.max_line_bytes, {limit:,}"):
            list(json_values(stream, "log", limit))
        assert stream.tell() < 3 * limit
        for more in (0, 1):
            stream = io.StringIO('["' + "b" * (limit - 2 + more) + '", 5]')
            if more:
                with pytest.raises(UserError, match="is longer than"):
                    list(json_values(stream, "log", limit))
            else:
                assert [value for _, _, value in json_values(stream, "log", limit)] == ["b" * (limit - 2), "5"]


def test_what_follows_a_broken_value_is_read() -> None:
    found = list(json_values(io.StringIO('[{"a" 5}, {"a": 6},\n{"a": 7]'), "log", LIMIT))
    assert found == [(1, '{"a" 5}', BROKEN), (1, '{"a": 6}', {"a": "6"}), (2, '{"a": 7', BROKEN)]


def test_json_nested_too_deep_is_a_reject(read_log: Stage, tmp_path: Path) -> None:
    text = json.dumps(OBJECTS)[:-1] + ', {"a": ' + "[" * 100_000 + "]" * 100_000 + "}]"
    result = read_log(write(tmp_path / "log.json", text), max_reject_rate=0.1)
    assert (result.rows, len(result.rejects)) == (LOG, 1)


def test_a_json_row_with_line_breaks_in_its_id_is_one_row(read_log: Stage, tmp_path: Path) -> None:
    rows = [*OBJECTS, {"user": "u\n1\n2\n3", "item": "i1", "timestamp": 1_400_000_000}]
    result = read_log(write(tmp_path / "log.jsonl", jsonl_text(rows)), max_reject_rate=0.1)
    assert result.read == 37
    assert result.rejects == [("log.jsonl", 37, "user holds a line break")]
    assert result.reject_rows[0] == "u\\n1\\n2\\n3,i1,1400000000"
    pd.DataFrame(rows).to_parquet(tmp_path / "log.parquet")
    assert read_log(tmp_path / "log.parquet", max_reject_rate=0.1).read == 37


@pytest.mark.parametrize("text", ["]", "[{}]]", "]]]", '[{"a": 1]}', "[}", '{"a": 1]', "[,]", "{", '["a" "b"]', "\x00"])
def test_reading_json_with_odd_brackets_comes_to_an_end(text: str) -> None:
    with contextlib.suppress(UserError):
        assert len(list(json_values(io.StringIO(text), "log", LIMIT))) <= 3
