"""An item that is listed again: exact copies count once, other texts are rejects, whatever the order of the rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.ingest.rejects as rejecting
from pipeline.ingest.id_index import IdIndex, hash_texts
from pipeline.ingest.item_file import stage_items
from pipeline.ingest.recipes import Format
from pipeline.ingest.rejects import SCHEMA, Rejects
from pipeline.ingest.sources import RawFile

Row = tuple[str, str, str]  # item, title, image


def slow(rows: list[Row]) -> tuple[list[Row], list[tuple[int, str]], int]:
    """The rows that stay, (line, reason) of those that do not, and the number of copies."""
    first: dict[str, tuple[str, str]] = {}
    good, bad, copies = [], [], 0
    for line, (item, *texts) in enumerate(rows, 2):
        text = (texts[0], texts[1])
        if not item:
            bad.append((line, "item is missing"))
        elif item in first and first[item] == text:
            copies += 1
        elif item in first:
            bad.append((line, "item is listed twice"))
        elif ".." in text[1]:
            bad.append((line, "image lies outside the dataset folder"))
        else:
            good.append((item, *text))
        if item:
            first.setdefault(item, text)
    return good, bad, copies


@pytest.mark.parametrize("items", [12, 60, 1_000_000])
@pytest.mark.parametrize("outside", [0.0, 0.2])
@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_items_that_are_listed_again_equal_a_slow_reference(
    tmp_path: Path, items: int, outside: float, missing: float
) -> None:
    rng = np.random.default_rng([items, int(100 * outside), int(100 * missing)])
    for turn in range(10):
        rows: list[Row] = [
            (
                "" if rng.random() < missing else f"i{rng.integers(items)}",
                f"title {rng.integers(2)}",
                "../x.png" if rng.random() < outside else "x.png",
            )
            for _ in range(40)
        ]
        path = tmp_path / f"{turn}.csv"
        path.write_text("item,title,image\n" + "".join(",".join(row) + "\n" for row in rows))
        file = RawFile(path=path, name=path.name, format=Format("csv"))
        with Rejects(tmp_path / "rejects.parquet") as rejects:
            staged = stage_items([file], "items.csv", None, {}, rejects, path=tmp_path / "items.parquet", null_words=())
        good, bad, copies = slow(rows)
        table = pq.read_table(staged.path)
        assert list(zip(*(table[name].to_pylist() for name in ("raw_id", "title", "image")), strict=True)) == good
        found = [(row["line"], row["reason"]) for block in rejects.blocks("100MB") for row in block.to_pylist()]
        assert found == bad
        assert rejects.total([file.name]) == len(bad)
        assert (staged.copies, staged.read) == (copies, len(rows))
        assert staged.index.find(pa.array([row[0] for row in good])).tolist() == list(range(len(good)))
        assert [rows[row][0] for row in staged.source_rows()] == [row[0] for row in good]


def test_repeated_ids_are_told_from_two_ids_of_one_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pa.array(["a", "b", "c", "b", "d", "e", "e", "e"])
    assert IdIndex(ids).repeated() == {"b", "e"}
    assert IdIndex(pa.array([], pa.string())).repeated() == set()
    monkeypatch.setattr("pipeline.ingest.id_index.hash_texts", lambda texts: hash_texts(texts) & np.uint64(1))
    assert IdIndex(ids).repeated() == {"b", "e"}


def test_rejects_come_sorted_in_blocks_and_those_of_one_line_as_they_were_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejecting, "BUFFER_ROWS", 70)
    rng = np.random.default_rng(0)
    rows = [
        (f"{'bé'[rng.integers(2)]}.csv", int(line), f"reason {number}", "x" * int(rng.integers(5)))
        for number, line in enumerate(rng.integers(0, 300, 2000))
    ]
    with Rejects(tmp_path / "rejects.parquet") as rejects:
        for row in rows:
            rejects.add(*row)
        for row in rows[:90]:
            rejects.add("forgotten.csv", *row[1:])
        rejects.forget(["forgotten.csv"])
        rejects.add("a.csv", 5, "late", "row")
    blocks = [*rejects.blocks("100MB")]
    names = [str(name) for name in SCHEMA.names]
    found = [tuple(row[name] for name in names) for block in blocks for row in block.to_pylist()]
    assert found == sorted([*rows, ("a.csv", 5, "late", "row")], key=lambda row: (row[0].encode(), row[1]))
    assert rejects.total(["forgotten.csv"]) == 0
    assert not (tmp_path / "rejects.before").exists()
