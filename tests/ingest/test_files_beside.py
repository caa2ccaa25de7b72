"""Files beside the log: items and vectors that are read or named as unused, folders as files, and what items hold."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from raw_logs import Ingest, csv_text, interactions, jsonl_text, write

from pipeline.errors import UserError

LOG = interactions()
ITEMS = "item,title\n" + "".join(f"i{n},Title {n}\n" for n in range(6))
TITLES = [f"Title {n}" for n in range(6)]


def parts(folder: Path, frame: pd.DataFrame, suffix: str = "snappy.parquet") -> Path:
    """Writes a frame as Spark does: a folder of parts with hidden files beside them."""
    folder.mkdir(parents=True)
    for part in range(3):
        piece = frame.iloc[part * len(frame) // 3 : (part + 1) * len(frame) // 3]
        path = folder / f"part-0000{part}-c000.{suffix}"
        if "parquet" in suffix:
            piece.to_parquet(path)
        elif "json" in suffix:
            piece.to_json(path, orient="records", lines=True)
        else:
            piece.to_csv(path, index=False)
        write(folder / f".{path.name}.crc", "x")
    write(folder / "_SUCCESS", "")
    write(folder / "_metadata", "x")
    return folder


@pytest.fixture
def log() -> pd.DataFrame:
    return pd.DataFrame(LOG, columns=["user", "item", "timestamp"])


@pytest.fixture
def items() -> pd.DataFrame:
    return pd.DataFrame({"item": [f"i{n}" for n in range(6)], "title": TITLES})


# ------------------------------------------------------------------------------------- read, or named as unused


@pytest.mark.parametrize("files", ["day*.csv", "*.csv", "day[12].csv", "**/*.csv", "logs/*.csv", "logs/day*"])
def test_with_a_pattern_the_items_and_vectors_of_the_folder_are_read(
    ingest: Ingest, tmp_path: Path, files: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "raw [1]"
    logs = folder / "logs" if files.startswith("logs") else folder
    write(logs / "day1.csv", csv_text(LOG[:20]))
    write(logs / "day2.csv", csv_text(LOG[20:]))
    write(logs / "items.csv", ITEMS)
    np.save(logs / "clip_embeddings.npy", np.arange(6.0)[:, None])
    result = ingest(folder, files=files)
    assert result.rows == LOG
    assert result.frame("items").title.tolist() == TITLES
    assert [row[0] for row in result.frame("items").vector] == [0, 1, 2, 3, 4, 5]
    assert "taken from clip_embeddings.npy by order: row i belongs to row i of items.csv, 6 of 6" in (
        capsys.readouterr().out
    )


def test_with_a_file_the_items_and_vectors_beside_it_are_named(
    ingest: Ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "raw" / "log.csv", csv_text(LOG))
    write(tmp_path / "raw" / "items.csv", ITEMS)
    write(tmp_path / "raw" / "vectors.parquet", "x")
    np.save(tmp_path / "raw" / "a_embeddings.npy", np.ones((6, 1)))
    assert ingest(tmp_path / "raw" / "log.csv").frame("items").title.isna().all()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("items.csv in") and "ingest.files to log.csv" in line for line in lines)
    assert any(line.startswith("a_embeddings.npy, vectors.parquet in") for line in lines)
    assert ingest(tmp_path / "raw", files="log.csv").frame("items").title.tolist() == TITLES


def test_files_of_the_folder_that_are_not_read_are_named(
    ingest: Ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    for name in ("products.csv", "vectors.parquet", "vectors.npz", "notes.txt", ".hidden.csv", "items.csv.dvc"):
        write(tmp_path / "raw" / name, "x")
    ingest(tmp_path / "raw")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not read")]
    assert line.startswith(f"not read in {tmp_path / 'raw'}: products.csv, vectors.npz, vectors.parquet (")


def test_vectors_without_items_are_named(ingest: Ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "raw" / "day1.csv", csv_text(LOG))
    np.save(tmp_path / "raw" / "a_embeddings.npy", np.ones((6, 1)))
    ingest(tmp_path / "raw", files="*.csv")
    assert "a_embeddings.npy was not read, because no items.* is beside it" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------- folders as files


@pytest.mark.parametrize("suffix", ["snappy.parquet", "csv", "json", "csv.gz"])
@pytest.mark.parametrize("how", ["folder", "itself", "files", "glob"])
def test_a_folder_of_parts_is_a_log(ingest: Ingest, tmp_path: Path, log: pd.DataFrame, suffix: str, how: str) -> None:
    ending = suffix.removeprefix("snappy.").removesuffix(".gz")
    folder = parts(tmp_path / "raw" / f"interactions.{ending}", log, suffix)
    write(tmp_path / "raw" / "items.csv", ITEMS)
    result = {
        "folder": lambda: ingest(tmp_path / "raw"),
        "itself": lambda: ingest(folder),
        "files": lambda: ingest(tmp_path / "raw", files=folder.name),
        "glob": lambda: ingest(tmp_path / "raw", files=f"{folder.name}/*"),
    }[how]()
    assert result.rows == LOG
    assert len([name for name in result.summary["sha256"] if "part-" in name]) == 3


def test_a_folder_of_parts_needs_no_suffix(ingest: Ingest, tmp_path: Path, log: pd.DataFrame) -> None:
    parts(tmp_path / "raw" / "interactions", log)
    assert ingest(tmp_path / "raw").rows == ingest(tmp_path / "raw" / "interactions").rows == LOG


@pytest.mark.parametrize("suffix", ["snappy.parquet", "csv", "json"])
def test_a_folder_of_parts_is_an_item_file(ingest: Ingest, tmp_path: Path, items: pd.DataFrame, suffix: str) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    parts(tmp_path / "raw" / f"items.{suffix.removeprefix('snappy.')}", items.iloc[::-1], suffix)
    np.save(tmp_path / "raw" / "a_embeddings.npy", np.arange(6.0)[:, None])
    result = ingest(tmp_path / "raw")
    assert result.frame("items").title.tolist() == TITLES[::-1]
    assert [row[0] for row in result.frame("items").vector] == [0, 1, 2, 3, 4, 5]
    assert result.summary["items_listed"] == 6


def test_parts_of_an_item_file_may_differ_in_their_columns(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    write(tmp_path / "raw" / "items.csv" / "part-0", "item,title\ni0,Zero\ni1,One\n")
    write(tmp_path / "raw" / "items.csv" / "part-1", "brand,item\nB,i2\nB,i3\nC,i4\nC,i5\n")
    table = ingest(tmp_path / "raw").frame("items")
    assert table.title.fillna("").tolist() == ["Zero", "One", "", "", "", ""]
    assert table.brand.fillna("").tolist() == ["", "", "B", "B", "C", "C"]


# ------------------------------------------------------------------------------------------------ what items hold


def test_rows_without_an_id_are_rejects_and_no_copies(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    write(tmp_path / "raw" / "items.csv", ITEMS + "nan,x\nnan,x\nnan,y\n")
    result = ingest(tmp_path / "raw", max_reject_rate=0.5)
    assert result.rejects == [("items.csv", line, "item is missing") for line in (8, 9, 10)]
    assert (result.summary["items_listed"], "item_copies" in result.summary) == (9, False)


def test_items_listed_twice_alike_are_one(ingest: Ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    write(tmp_path / "raw" / "items.csv", ITEMS + "i3,Title 3\ni0,Title 0\ni3,Title 3\n")
    np.save(tmp_path / "raw" / "a_embeddings.npy", np.arange(9.0)[:, None])
    result = ingest(tmp_path / "raw")
    assert result.rejects == []
    assert result.frame("items").title.tolist() == TITLES
    assert [row[0] for row in result.frame("items").vector] == [0, 1, 2, 3, 4, 5]
    assert (result.summary["items_listed"], result.summary["item_copies"]) == (9, 3)
    assert "3 rows of items.csv are exact copies" in capsys.readouterr().out


def test_a_copy_is_no_contradiction(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    write(tmp_path / "raw" / "items.csv", ITEMS + "i3,Title 3\ni3,another\n,\n,\n")
    result = ingest(tmp_path / "raw", max_reject_rate=0.5)
    assert result.rejects == [("items.csv", 9, "item is listed twice")]  # a row of empty fields is a blank line
    assert result.summary["item_copies"] == 1


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ("Thing &amp; Co &#39;0&#39; &quot;x&quot;", "Thing & Co '0' \"x\""),
        ("&Eacute;toile &#x2764; &nbsp;", "Étoile ❤ \xa0"),
        ("R&D, AT&T; fish &copy chips &unknown; &", "R&D, AT&T; fish &copy chips &unknown; &"),
        ("&amp;lt;", "&lt;"),
        ("bell&#7;", "bell"),
    ],
)
def test_html_entities_are_decoded(ingest: Ingest, tmp_path: Path, written: str, title: str) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    listed = [
        {"item": f"i{n}", "title": written, "categories": [[written, "b"]], "image": "a&amp;b.png"} for n in range(6)
    ]
    write(tmp_path / "raw" / "items.jsonl", jsonl_text(listed))
    table = ingest(tmp_path / "raw").frame("items")
    assert set(table.title) == {title}
    assert set(table.categories) == {f"{title} > b"}
    assert set(table.image) == {"a&amp;b.png"}


@pytest.mark.parametrize(
    ("name", "text", "reason", "hint"),
    [
        ("items.json", '[["i0", "Zero"],\n ["i1", "One"]]', "2 x not a JSON object (items.json, line 1: [", ""),
        ("items.jsonl", "\n\nhello\n", "1 x broken JSON (items.jsonl, line 3: hello)", "written to the end"),
        ("items.csv", "item,title\ni0\ni1\n", "2 x 1 fields where 2 are expected (items.csv, line 2: i0)", ""),
    ],
)
def test_an_item_file_without_a_good_row_says_why(
    ingest: Ingest, tmp_path: Path, name: str, text: str, reason: str, hint: str
) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    write(tmp_path / "raw" / name, text)
    with pytest.raises(UserError, match=r"items\.\w+ holds no readable rows") as error:
        ingest(tmp_path / "raw", max_reject_rate=1.0)
    assert reason in error.value.why
    assert hint in error.value.fix
