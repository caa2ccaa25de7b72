"""One rule of raw ids: for user and item, in the log and in the item file, in every format."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_logs import START, Ingest, csv_text, write

from pipeline.errors import UserError
from pipeline.ingest.id_index import IdIndex
from pipeline.ingest.ids import as_listed, whole_numbers
from pipeline.raw_ids import dense_ids, whole_number


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("7", "7"),
        ("7.0", "7"),
        ("7.", "7"),
        ("7.000", "7"),
        ("0", "0"),
        ("-0.0", "0"),
        ("-7.0", "-7"),
        ("1.2345678901e+10", "12345678901"),
        ("1e16", "10000000000000000"),
        ("1.5E+1", "15"),
        ("12345678901234567890123.0", "12345678901234567890123"),
        ("7.5", None),
        ("1.25e1", None),
        ("007", None),
        ("00", None),
        ("+7", None),
        ("1e-1", None),
        ("1_000", None),
        ("1,204", None),
        ("0x1F", None),
        ("٧", None),
        ("7 ", None),
        ("abc", None),
        ("", None),
    ],
)
def test_whole_numbers_are_their_digits_and_other_texts_are_names(text: str, digits: str | None) -> None:
    assert whole_number(text) == digits
    assert whole_numbers(pa.array([text, None, text], pa.string())).to_pylist() == [digits, None, digits]


@given(st.integers(-(2**53), 2**53))
def test_an_integral_float_is_its_integer(number: int) -> None:
    assert {whole_number(repr(float(number))), whole_number(str(number)), whole_number(f"{number}.0")} == {str(number)}


def write_ids(path: Path, users: list[Any], items: list[Any]) -> Path:
    """Write a log in which interaction n is of users[n] with items[n], as the file's name demands."""
    rows = [(user, item, START + n) for n, (user, item) in enumerate(zip(users, items, strict=True))]
    if path.suffix == ".jsonl":
        names = ("user", "item", "timestamp")
        return write(path, "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    if path.suffix == ".parquet":
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=["user", "item", "timestamp"]).to_parquet(path)
        return path
    text = csv_text([tuple("" if part is None else part for part in row) for row in rows])
    return write(path, text.replace(",", "\t") if path.suffix == ".tsv" else text)


def ids_of(ingest: Ingest, path: Path, **settings: Any) -> tuple[list[str], list[str]]:
    result = ingest(path, k_core=0, **settings)
    return result.frame("users").raw_id.tolist(), result.frame("items").raw_id.tolist()


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.jsonl"])
def test_in_a_numeric_column_7_and_7_point_0_are_one_id(ingest: Ingest, tmp_path: Path, name: str) -> None:
    users, items = [7, "7", 7.0, "7.00", "7e0"], ["12345678901", 12345678901.0, "1.2345678901e+10", 3, "3.0"]
    assert ids_of(ingest, write_ids(tmp_path / name, users, items)) == (["7"], ["12345678901", "3"])


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.jsonl"])
@pytest.mark.parametrize("other", ["abc", "007", "7.5", "+7", "B00X", "1-2"])
def test_one_other_id_and_the_column_stays_as_it_is_written(
    ingest: Ingest, tmp_path: Path, name: str, other: str
) -> None:
    path = write_ids(tmp_path / name, ["7.0", "7.0", "7", "8"], ["7.0", "7", "1e3", other])
    assert ids_of(ingest, path) == (["7", "8"], ["7.0", "7", "1e3", other])


def test_a_column_is_that_of_all_files_and_a_rejected_row_does_not_count(ingest: Ingest, tmp_path: Path) -> None:
    write_ids(tmp_path / "logs" / "a.csv", ["1.0", "2"], ["7.0", "7.0"])
    write_ids(tmp_path / "logs" / "b.csv", ["1", "2.0", "x"], ["abc", "7", ""])
    users, items = ids_of(ingest, tmp_path / "logs", files="*.csv", max_reject_rate=0.5)
    assert (users, items) == (["1", "2"], ["7.0", "abc", "7"])


@pytest.mark.parametrize("kind", [np.float64, np.float32, "Int64", "Float64", "string", "decimal"])
def test_parquet_ids_of_every_type_are_the_same(ingest: Ingest, tmp_path: Path, kind: Any) -> None:
    numbers = [3, 7, 3, 12_000_000_000 if kind is not np.float32 else 2**24]
    frame = pd.DataFrame({"user": ["u", "v", "w", "u"], "item": numbers, "timestamp": range(START, START + 4)})
    if kind == "decimal":
        table = pa.Table.from_pandas(frame)
        table = table.set_column(1, "item", table["item"].cast(pa.decimal128(30, 2)))
        pa.parquet.write_table(table, tmp_path / "log.parquet")
    else:
        frame.astype({"item": kind}).to_parquet(tmp_path / "log.parquet")
    assert ids_of(ingest, tmp_path / "log.parquet")[1] == ["3", "7", str(numbers[3])]


@pytest.mark.parametrize("name", ["interactions.csv", "interactions.jsonl", "interactions.parquet"])
@pytest.mark.parametrize(
    ("listed", "items", "expected"),
    [
        (["7", "8"], ["7.0", "8.0", "7.0"], ["7", "8"]),
        (["7.0", "8.0"], ["7", "8", "7"], ["7", "8"]),
        (["7", "8", "abc"], ["7.0", "8", "7.0"], ["7", "8"]),
        (["7.0", "8", "abc"], ["7.0", "8.0", "7.0"], ["7.0", "8"]),
        (["7", "007", "abc"], ["007", "7", "7.0"], ["7", "007"]),
        ([" 7 ", "8\t"], ["7.0", " 8", "7"], ["7", "8"]),
        (["12345678901"], ["1.2345678901e+10", "12345678901.0", "12345678901"], ["12345678901"]),
    ],
)
def test_log_and_item_file_meet(
    ingest: Ingest, tmp_path: Path, name: str, listed: list[str], items: list[str], expected: list[str]
) -> None:
    write_ids(tmp_path / "raw" / name, ["u", "v", "w"], items)
    write(tmp_path / "raw" / "items.csv", csv_text([(item, "t") for item in listed], "item,title"))
    assert ids_of(ingest, tmp_path / "raw", max_reject_rate=0)[1] == expected


def test_an_item_of_another_number_is_still_a_reject(ingest: Ingest, tmp_path: Path) -> None:
    write_ids(tmp_path / "raw" / "interactions.csv", ["u", "v", "w", "x"], ["7.0", "9.0", "007", "abc"])
    write(tmp_path / "raw" / "items.csv", csv_text([("7", "t"), ("8", "t")], "item,title"))
    result = ingest(tmp_path / "raw", max_reject_rate=0.9, k_core=0)
    assert result.rejects == [("interactions.csv", line, "item is not in items.csv") for line in (3, 4, 5)]


def test_an_item_listed_by_two_writings_of_its_number_is_one(ingest: Ingest, tmp_path: Path) -> None:
    write_ids(tmp_path / "raw" / "interactions.csv", ["u", "v", "w"], ["7", "8", "9"])
    listed = [("7.0", "first"), ("8", "eight"), ("7", "again"), ("9", "nine"), ("7e0", "once more")]
    write(tmp_path / "raw" / "items.csv", csv_text(listed, "item,title"))
    result = ingest(tmp_path / "raw", max_reject_rate=0.9, k_core=0)
    assert result.rejects == [("items.csv", line, "item is listed twice") for line in (4, 6)]
    assert list(result.frame("items")[["raw_id", "title"]].itertuples(index=False, name=None)) == [
        ("7", "first"),
        ("8", "eight"),
        ("9", "nine"),
    ]
    assert result.summary["items_listed"] == 5


def test_equal_items_of_two_writings_of_a_number_are_copies_and_no_rejects(ingest: Ingest, tmp_path: Path) -> None:
    write_ids(tmp_path / "raw" / "interactions.csv", ["u", "v"], ["7", "8"])
    listed = [("7.0", "same"), ("8", "eight"), ("7", "same"), ("7e0", "other")]
    write(tmp_path / "raw" / "items.csv", csv_text(listed, "item,title"))
    result = ingest(tmp_path / "raw", max_reject_rate=0.9, k_core=0)
    assert result.rejects == [("items.csv", 5, "item is listed twice")]
    assert (result.summary["items_listed"], result.summary["item_copies"]) == (4, 1)


@pytest.mark.parametrize(
    ("name", "blank"),
    [
        *itertools.product(["log.csv", "log.tsv", "log.jsonl", "log.parquet"], [" ", "  ", "\u00a0"]),
        *itertools.product(["log.csv", "log.jsonl", "log.parquet"], ["\t"]),  # in TSV a tab ends the field
    ],
)
def test_blanks_around_ids_are_cut_off_and_counted(
    ingest: Ingest, tmp_path: Path, name: str, blank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_ids(tmp_path / name, [f"{blank}u", "u", "v w"], ["a", f"a{blank}", f"{blank}a{blank}"])
    result = ingest(path, k_core=0)
    assert (result.frame("users").raw_id.tolist(), result.frame("items").raw_id.tolist()) == (["u", "v w"], ["a"])
    assert result.summary["ids_trimmed"] == {"user": 1, "item": 2}
    assert "blanks around ids were cut off: 1 of user, 2 of item" in capsys.readouterr().out


WORDS = ["nan", "NaN", "NAN", "null", "NULL", "None", "none", r"\N", "<NA>", "", " ", " NaN "]


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.jsonl", "log.parquet"])
def test_a_null_word_is_never_a_user_or_an_item(ingest: Ingest, tmp_path: Path, name: str) -> None:
    users = ["u", *WORDS, *["u"] * len(WORDS), "v"]
    items = ["a", *["a"] * len(WORDS), *WORDS, "Nana"]
    result = ingest(write_ids(tmp_path / name, users, items), k_core=0, max_reject_rate=1.0)
    assert result.frame("users").raw_id.tolist() == ["u", "v"]
    assert result.frame("items").raw_id.tolist() == ["a", "Nana"]
    assert result.summary["rejects"] == {"item is missing": len(WORDS), "user is missing": len(WORDS)}


def test_a_number_that_is_missing_in_json_and_parquet_is_no_id(ingest: Ingest, tmp_path: Path) -> None:
    path = write_ids(tmp_path / "log.jsonl", [math.nan, None, "u"], ["a", "a", "a"])
    assert ids_of(ingest, path, max_reject_rate=0.7) == (["u"], ["a"])
    path = write_ids(tmp_path / "log.parquet", [math.nan, None, 12_000_000_000.0], ["a", "a", "a"])
    assert ids_of(ingest, path, max_reject_rate=0.7) == (["12000000000"], ["a"])


def test_the_null_words_are_a_setting(ingest: Ingest, tmp_path: Path) -> None:
    path = write_ids(tmp_path / "log.csv", ["nan", "Unknown", "u", ""], ["a", "a", "a", "a"])
    assert ids_of(ingest, path, null_words=["UNKNOWN"], max_reject_rate=0.5)[0] == ["nan", "u"]
    assert ids_of(ingest, path, null_words=[], max_reject_rate=0.5)[0] == ["nan", "Unknown", "u"]


def test_an_item_file_has_no_item_by_a_null_word(ingest: Ingest, tmp_path: Path) -> None:
    write_ids(tmp_path / "raw" / "interactions.csv", ["u", "v"], ["7", "8"])
    write(tmp_path / "raw" / "items.csv", csv_text([("7.0", "t"), ("nan", "t"), ("8.0", "t")], "item,title"))
    result = ingest(tmp_path / "raw", max_reject_rate=0.5, k_core=0)
    assert result.rejects == [("items.csv", 3, "item is missing")]
    assert result.frame("items").raw_id.tolist() == ["7", "8"]


def test_a_written_id_that_is_listed_goes_before_its_number() -> None:
    listed = pa.array(["7", "7.0", "abc"])
    ids, rows = as_listed(pa.array(["7.0", "7", "7.00", "8.0", None]), IdIndex(listed))
    assert ids.to_pylist() == ["7.0", "7", "7", "8.0", None]
    assert rows.tolist() == [1, 0, 0, -1, -1]


def test_commands_find_ids_by_the_same_rule() -> None:
    known = pd.DataFrame({"raw_id": ["7", "12000000000", "abc", " x"]})
    typed = ["7.0", " 7", "1.2e10", "abc ", " x"]
    assert dense_ids(typed, known, "item", Path("items.parquet")).tolist() == [0, 0, 1, 2, 3]
    for unknown in ("007", "7.5", "nan", "x"):
        with pytest.raises(UserError, match="is not known"):
            dense_ids([unknown], known, "item", Path("items.parquet"))
