"""Formats that are found in the content of a file, whatever its name: RecBole, packed files, folders."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from raw_logs import csv_text, interactions, write
from staged_logs import Stage

from pipeline.errors import UserError

LOG = interactions()
LIMIT = 1 << 22
OBJECTS = [dict(zip(("user", "item", "timestamp"), row, strict=True)) for row in LOG]
LISTED = [{"item": f"i{n}", "title": f"It's [{n}], {{}}", "categories": [["A", "B"]]} for n in range(6)]


# ------------------------------------------------------------------------------------------------------- RecBole


INTER = csv_text([(*row, 4.5) for row in LOG], "user_id:token,item_id:token,timestamp:float,rating:float").replace(
    ",", "\t"
)
ATOMIC_ITEMS = "item_id:token\tmovie_title:token_seq\tclass:token_seq\tpop:float\tvec:float_seq\n" + "".join(
    f'i{n}\tThe "{n}\tComedy Drama\t0.5\t0.1 0.2\n' for n in range(6)
)


def test_recboles_atomic_files_of_a_folder_are_log_and_items(read_log: Stage, tmp_path: Path) -> None:
    write(tmp_path / "ml" / "ml.inter", INTER)
    write(tmp_path / "ml" / "ml.item", ATOMIC_ITEMS)
    write(tmp_path / "ml" / "ml.user", "user_id:token\nu1\n")
    for result in (read_log(tmp_path / "ml"), read_log(tmp_path / "ml", files="*.inter")):
        assert result.rows == LOG
        assert result.columns == {
            "user": "user_id",
            "item": "item_id",
            "timestamp": "timestamp",
            "rating": "rating",
        }
        items = result.items
        assert list(items.title) == [f'The "{n}' for n in range(6)]
        assert set(items["class"]) == {"Comedy Drama"}
        assert set(items.vec) == {"0.1 0.2"}


def test_lines_of_an_atomic_file_are_counted_from_the_top(read_log: Stage, tmp_path: Path) -> None:
    path = write(tmp_path / "ml.inter", INTER + "u1\t\t1400000000\t1\nu1\n")
    assert read_log(path, max_reject_rate=0.1).rejects == [
        ("ml.inter", 38, "item is missing"),
        ("ml.inter", 39, "1 fields where 4 are expected"),
    ]


def test_the_parts_of_a_benchmark_are_one_log_and_not_read_beside_the_whole(read_log: Stage, tmp_path: Path) -> None:
    head, *rows = INTER.splitlines(keepends=True)
    for part, name in enumerate(("test", "train", "valid")):
        write(tmp_path / "ml" / f"ml.{name}.inter", head + "".join(rows[12 * part : 12 * part + 12]))
    assert read_log(tmp_path / "ml").rows == LOG
    write(tmp_path / "ml" / "ml.inter", INTER)
    with pytest.raises(UserError, match=r"ml\.inter and parts of it"):
        read_log(tmp_path / "ml")
    assert read_log(tmp_path / "ml", files="ml.inter").rows == LOG


def test_an_item_file_of_movielens_beside_a_log_is_left_alone(read_log: Stage, tmp_path: Path) -> None:
    write(tmp_path / "ml" / "u.data", csv_text(LOG).partition("\n")[2].replace(",", "\t"))
    write(tmp_path / "ml" / "u.item", "i0|Café\n", "latin-1")
    result = read_log(tmp_path / "ml", files="u.data", header=["user", "item", "timestamp"])
    assert result.rows == LOG


# ------------------------------------------------------------------------------------------- names, packed, folders


@pytest.mark.parametrize("name", ["log.dat", "log.txt", "log.data", "log.log", "log", "LOG.CSV", "log.2024-01-01.log"])
@pytest.mark.parametrize("delimiter", [",", "\t", "::", "|"])
def test_the_format_of_other_names_is_found_in_the_content(
    read_log: Stage, tmp_path: Path, name: str, delimiter: str
) -> None:
    if "." in name and name.endswith("01.log"):
        name = "log.log"
    assert read_log(write(tmp_path / name, csv_text(LOG).replace(",", delimiter))).rows == LOG


@pytest.mark.parametrize("name", ["log.dat", "log", "log.csv", "log.txt"])
def test_parquet_is_recognised_by_its_content(read_log: Stage, tmp_path: Path, name: str) -> None:
    write(tmp_path / name, pd.DataFrame(OBJECTS).to_parquet())
    assert read_log(tmp_path / name).rows == LOG


@pytest.mark.parametrize("name", ["interactions.txt", "interactions.dat", "interactions"])
def test_a_folder_may_call_its_files_so(read_log: Stage, tmp_path: Path, name: str) -> None:
    write(tmp_path / "raw" / name, csv_text(LOG).replace(",", "|"))
    write(
        tmp_path / "raw" / name.replace("interactions", "items"),
        "item|title\n" + "".join(f"i{n}|T\n" for n in range(6)),
    )
    write(tmp_path / "raw" / "README.txt", "hello")
    result = read_log(tmp_path / "raw")
    assert result.rows == LOG
    assert set(result.items.title) == {"T"}


def test_a_readme_in_a_folder_of_parts_is_no_part(read_log: Stage, tmp_path: Path) -> None:
    write(tmp_path / "log.csv" / "part-0", csv_text(LOG))
    write(tmp_path / "log.csv" / "README.txt", "hello, you")
    assert read_log(tmp_path / "log.csv").rows == LOG


def zipped(content: bytes, *names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
    "zip": lambda content: zipped(content, "__MACOSX/._log.csv", "folder/log.csv"),
    "gz": gzip.compress,
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("ending", ["csv.{}", "{}", "csv", "json.{}", "parquet.{}"])
def test_packed_files_are_read(read_log: Stage, tmp_path: Path, packer: str, ending: str) -> None:
    content = csv_text(LOG).encode()
    if "json" in ending:
        content = json.dumps(OBJECTS).encode()
    if "parquet" in ending:
        content = pd.DataFrame(OBJECTS).to_parquet()
    path = tmp_path / f"log.{ending.format(packer)}"
    path.write_bytes(PACKERS[packer](content))
    assert read_log(path).rows == LOG


@pytest.mark.parametrize("packer", PACKERS)
def test_packed_files_that_were_cut_are_named(read_log: Stage, tmp_path: Path, packer: str) -> None:
    content = PACKERS[packer](csv_text(LOG * 3000).encode())
    path = tmp_path / f"log.csv.{packer}"
    for size in (0, 12, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"log\.csv\.\w+(: the log has no rows| is no complete)"):
            read_log(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(b"x", "a.csv", "b.csv"), "is a zip archive of 2 files"),
        (zipped(b"x"), "is a zip archive of 0 files"),
        (zipped(b"x", "[Content_Types].xml", "xl/workbook.xml"), "is a spreadsheet"),
        (b"ARROW1\x00\x00rest", "is an Arrow"),
        (b"SQLite format 3\x00rest", "is an SQLite database"),
        (b"\x89HDF\r\n", "is an HDF5 file"),
        (b"a.csv".ljust(257, b"\0") + b"ustar", "is a tar archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is no text file"),
        (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(range(256)), "is no text file"),
    ],
)
@pytest.mark.parametrize("name", ["log.csv", "log.zip", "log"])
def test_files_that_ingest_cannot_read_are_named(
    read_log: Stage, tmp_path: Path, content: bytes, message: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message if name != "log.zip" or b"PK" in content else "is no complete zip"):
        read_log(tmp_path / name)


def test_the_first_lines_may_be_blank_or_name_the_delimiter(read_log: Stage, tmp_path: Path) -> None:
    text = csv_text(LOG).replace(",", ";")
    for before, first in (("\n\n", 3), ("sep=;\n", 2), ("\ufeffsep=;\r\n", 2), ('"sep=;"\n', 2)):
        path = write(tmp_path / "log.csv", before + text + "u1;;1400000000\nu1\n")
        result = read_log(path, max_reject_rate=0.1)
        assert result.rows == LOG
        assert [line for _, line, _ in result.rejects] == [first + 37, first + 38]


def hive(folder: Path, kind: str) -> Path:
    for part in range(3):
        path = folder / f"day=2014-05-{13 + part}" / f"hour={part}" / f"part-0.{kind}"
        rows = pd.DataFrame(OBJECTS[12 * part : 12 * part + 12])
        path.parent.mkdir(parents=True)
        path.write_bytes(rows.to_parquet() if kind == "parquet" else rows.to_csv(index=False).encode())
    write(folder / "_SUCCESS", "")
    return folder


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("name", ["interactions", "interactions.parquet", "log"])
def test_folders_of_partitions_are_a_log(read_log: Stage, tmp_path: Path, kind: str, name: str) -> None:
    folder = hive(tmp_path / "raw" / name, kind)
    for result in (
        read_log(folder),
        read_log(tmp_path / "raw", files=f"{name}/*/*/part-0.{kind}"),
        read_log(tmp_path / "raw", files=name),
    ):
        assert result.rows == LOG
        assert list(result.columns) == ["user", "item", "timestamp"]


def test_a_column_that_only_the_folders_have_is_read_where_it_is_needed(read_log: Stage, tmp_path: Path) -> None:
    for user in range(6):
        rows = pd.DataFrame([(item, time) for name, item, time in LOG if name == f"u{user}"], columns=["item", "when"])
        path = tmp_path / "log" / f"user=u{user}" / "kind=view" / f"weight={user}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        rows.to_parquet(path)
    result = read_log(tmp_path / "log", columns={"timestamp": "when"})
    assert result.rows == LOG
    assert list(result.columns) == ["user", "item", "timestamp"]
    weighed = read_log(tmp_path / "log", columns={"timestamp": "when", "weight": "weight"}).log
    assert list(weighed.weight) == [float(n // 6) for n in range(36)]


def test_the_file_itself_goes_before_its_folders(read_log: Stage, tmp_path: Path) -> None:
    write(tmp_path / "log" / "user=x" / "item_id=y" / "part-0.csv", csv_text(LOG))
    assert read_log(tmp_path / "log").rows == LOG


def test_items_in_partitions_have_their_categories(read_log: Stage, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    for n in range(6):
        write(
            tmp_path / "raw" / "items.csv" / f"category=Home %26 Co {n % 2}" / f"part-{n}.csv", f"item,title\ni{n},T\n"
        )
    items = read_log(tmp_path / "raw").items.set_index("raw_id")
    assert items.categories["i3"] == "Home & Co 1"


# --------------------------------------------------------------------------------------------- what DVC does not watch


@pytest.mark.parametrize("files", ["../other/*.csv", "a/../../other/log.csv", "ABSOLUTE/log.csv", ".."])
def test_files_outside_the_folder_are_refused(read_log: Stage, tmp_path: Path, files: str) -> None:
    write(tmp_path / "other" / "log.csv", csv_text(LOG))
    (tmp_path / "raw" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"ingest\.files is .* lead out of") as error:
        read_log(tmp_path / "raw", files=files.replace("ABSOLUTE", str(tmp_path / "other")))
    assert "DVC watches ingest.path alone" in error.value.why


def test_a_link_to_a_folder_elsewhere_is_refused_and_one_to_a_file_is_read(read_log: Stage, tmp_path: Path) -> None:
    write(tmp_path / "other" / "log.csv", csv_text(LOG))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "days").symlink_to(tmp_path / "other")
    for files in ("days/*.csv", "*/log.csv", "days"):
        with pytest.raises(UserError, match="is a link to the folder") as error:
            read_log(tmp_path / "raw", files=files)
        assert "DVC does not look into linked folders" in error.value.why
    (tmp_path / "raw" / "log.csv").symlink_to(tmp_path / "other" / "log.csv")
    assert read_log(tmp_path / "raw", files="*.csv").rows == LOG
    (tmp_path / "link").symlink_to(tmp_path / "other")
    assert read_log(tmp_path / "link", files="*.csv").rows == LOG
