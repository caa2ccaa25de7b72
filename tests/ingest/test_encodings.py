"""Encodings of text files: recognised, set by `ingest.encoding`, or named with line and byte."""

from pathlib import Path

import pytest
from raw_logs import csv_text, interactions, jsonl_text, write
from settings import read_params
from staged_logs import Stage

from pipeline.errors import UserError
from pipeline.ingest.config import usual_encoding

LOG = interactions()
TITLES = [f"Amélie {n} – ½" for n in range(6)]
ITEMS = "item,title\n" + "".join(f"i{n},{title}\n" for n, title in enumerate(TITLES))
ITEMS_JSON = jsonl_text([{"item": f"i{n}", "title": title} for n, title in enumerate(TITLES)])
WIDE = {
    "utf-16": b"",
    "utf-16-le": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
    "utf-32": b"",
    "utf-32-be": b"\x00\x00\xfe\xff",
    "utf-8": b"\xef\xbb\xbf",
}


def titles(read_log: Stage, folder: Path, encoding: str = "") -> list[str]:
    result = read_log(folder, encoding=encoding)
    assert result.rows == LOG
    return list(result.items.title)


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".csv.gz", ".txt"])
def test_a_byte_order_mark_tells_the_encoding(read_log: Stage, tmp_path: Path, encoding: str, ending: str) -> None:
    log = csv_text(LOG).replace(",", "\t" if ending == ".txt" else ",")
    if ending == ".jsonl":
        log = jsonl_text([dict(zip(("user", "item", "timestamp"), row, strict=True)) for row in LOG])
    items = ITEMS_JSON if ending == ".jsonl" else ITEMS
    for name, text in (("interactions", log), ("items", items)):
        write(tmp_path / "raw" / f"{name}{ending}", WIDE[encoding] + text.encode(encoding))
    assert titles(read_log, tmp_path / "raw") == TITLES


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_recognised(read_log: Stage, tmp_path: Path, encoding: str) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG), encoding)
    write(tmp_path / "raw" / "items.csv", ITEMS, encoding)
    assert titles(read_log, tmp_path / "raw") == TITLES


def test_utf_16_that_was_cut_is_named(read_log: Stage, tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", csv_text(LOG).encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"log\.csv, line 37: not valid utf-16"):
        read_log(path)


@pytest.mark.parametrize("wide_row", [False, True], ids=["", "a comma too many"])
@pytest.mark.parametrize("name", ["items.csv", "items.jsonl", "items.csv.gz"])
def test_a_file_that_is_not_utf_8_is_named_and_read_when_its_encoding_is_set(
    read_log: Stage, tmp_path: Path, name: str, wide_row: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    text = ITEMS_JSON if "json" in name else ITEMS + ("i9,café, the one\n" if wide_row else "")
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    write(tmp_path / "raw" / name, text.encode("cp1252") if not name.endswith("gz") else text, "cp1252")
    line, column = (1, 30) if "json" in name else (2, 6)
    if "json" in name:
        text = text.replace("\\u00e9", "é").replace("\\u2013", "–").replace("\\u00bd", "½")
        write(tmp_path / "raw" / name, text, "cp1252")
        column = text.index("é") + 1
    with pytest.raises(UserError) as error:
        read_log(tmp_path / "raw")
    assert error.value.what == f"{name}, line {line}: not valid UTF-8 (byte {column} of the line is 0xe9)"
    assert "Windows-1252" in error.value.why
    assert "ingest.encoding" in error.value.fix
    assert "Exception ignored" not in capfd.readouterr().err
    assert titles_with_rejects(read_log, tmp_path / "raw", "windows-1252") == TITLES


def titles_with_rejects(read_log: Stage, folder: Path, encoding: str) -> list[str]:
    return list(read_log(folder, encoding=encoding, max_reject_rate=0.5).items.title)


def test_an_encoding_does_not_count_for_a_file_that_is_utf_8(read_log: Stage, tmp_path: Path) -> None:
    log = [(f"ü{user}", item, time) for user, item, time in LOG]
    write(tmp_path / "raw" / "interactions.csv", csv_text(log))
    write(tmp_path / "raw" / "items.csv", ITEMS, "cp1252")
    result = read_log(tmp_path / "raw", encoding="cp1252")
    assert result.rows == log
    assert list(result.items.title) == TITLES


@pytest.mark.parametrize(("encoding", "title"), [("gb18030", "电影"), ("shift_jis", "映画です"), ("cp1251", "Фильм")])
def test_other_encodings(read_log: Stage, tmp_path: Path, encoding: str, title: str) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    write(tmp_path / "raw" / "items.csv", "item,title\n" + "".join(f"i{n},{title}{n}\n" for n in range(6)), encoding)
    assert titles(read_log, tmp_path / "raw", encoding) == [f"{title}{n}" for n in range(6)]
    with pytest.raises(UserError, match=r"items\.csv, line 2: not valid UTF-8"):
        read_log(tmp_path / "raw")


@pytest.mark.parametrize("encoding", ["", "cp1252", "latin-1"])
@pytest.mark.parametrize("name", ["items.csv", "items.jsonl"])
def test_a_file_that_mixes_encodings_is_named_with_both_lines(
    read_log: Stage, tmp_path: Path, encoding: str, name: str
) -> None:
    line = '{"item": "i%d", "title": "é"}' if "json" in name else "i%d,é"
    lines = [(line % n).encode("latin-1" if n in (2, 4) else "utf-8") for n in range(6)]
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    head = b"" if "json" in name else b"item,title\n"
    write(tmp_path / "raw" / name, head + b"\n".join(lines))
    first = 2 if "json" not in name else 1
    with pytest.raises(UserError, match=f"line {first + 2}: not valid UTF-8.* but line {first} is") as error:
        read_log(tmp_path / "raw", encoding=encoding)
    assert "mixes encodings: 2 lines have bytes that are not UTF-8, 4 lines have" in error.value.why


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_a_converted_movielens_has_its_titles(read_log: Stage, tmp_path: Path, encoding: str) -> None:
    rows = "".join(f"{user[1:]}::{item[1:]}::5::{time}\n" for user, item, time in LOG)
    write(tmp_path / "raw" / "ratings.dat", rows)
    write(tmp_path / "raw" / "movies.dat", "".join(f"{n}::Amélie {n} (2001)::Comedy\n" for n in range(6)), encoding)
    items = read_log(tmp_path / "raw", dataset="movielens-1m").items
    assert list(items.title) == [f"Amélie {n} (2001)" for n in range(6)]


@pytest.mark.parametrize("name", ["rot13", "base64", "utf-99", "\0", "x" * 1000, "undefined", "zlib"])
def test_a_name_that_is_no_text_encoding_is_refused_by_the_settings(name: str) -> None:
    with pytest.raises(ValueError, match="no text encoding"):
        usual_encoding(name)
    with pytest.raises((UserError, ValueError), match=r"ingest\.encoding"):
        read_params({"ingest": {"encoding": name}})
