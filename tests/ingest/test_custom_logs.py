"""Logs of users: formats, one file, a glob, a folder with items, vectors and images."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from raw_logs import START, Ingest, csv_text, interactions, jsonl_text, write

from pipeline.errors import UserError

ROWS = [(user, item, time, n % 5 + 1) for n, (user, item, time) in enumerate(interactions())]
NAMES = ("user", "item", "timestamp", "rating")
ITEMS = [
    {"item": f"i{n}", "title": f"Title {n}", "image": f"images/{n}.png", "color": "red"} for n in (3, 1, 5, 0, 2, 4)
]


def write_log(path: Path) -> Path:
    """Writes the same log in the format that the name asks for."""
    if ".parquet" in path.name:
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(ROWS, columns=NAMES).to_parquet(path.with_suffix("") if path.suffix == ".gz" else path)
        return write(path, path.with_suffix("").read_bytes()) if path.suffix == ".gz" else path
    if "json" in path.name:
        return write(path, jsonl_text([dict(zip(NAMES, row, strict=True)) for row in ROWS]))
    text = csv_text(ROWS, ",".join(NAMES))
    return write(path, text.replace(",", "\t") if ".tsv" in path.name else text)


def dataset(folder: Path, items: list[dict[str, Any]] = ITEMS) -> Path:
    write(folder / "interactions.csv", csv_text(ROWS, ",".join(NAMES)))
    write(folder / "items.jsonl", jsonl_text(items))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "log.csv",
        "log.csv.gz",
        "log.tsv",
        "log.tsv.gz",
        "log.jsonl",
        "log.jsonl.gz",
        "log.ndjson",
        "log.json",
        "log.parquet",
        "log.parquet.gz",
    ],
)
def test_every_format_gives_the_same(ingest: Ingest, tmp_path: Path, name: str) -> None:
    result = ingest(write_log(tmp_path / "raw" / name))
    assert result.rows == interactions()
    assert result.frame("interactions").rating.tolist() == [float(row[3]) for row in ROWS]
    assert list(result.summary["sha256"]) == [name]


def test_a_glob_reads_its_files_in_the_order_of_their_names(ingest: Ingest, tmp_path: Path) -> None:
    for part in range(3):
        write(
            tmp_path / "logs" / f"day{part}" / "part.csv", csv_text(ROWS[12 * part : 12 * part + 12], ",".join(NAMES))
        )
    write(tmp_path / "logs" / "day9" / "part.csv", ",".join(NAMES) + "\n")  # one of many may be empty
    result = ingest(f"{tmp_path}/logs/*/part.csv")
    assert result.rows == interactions()
    assert list(result.summary["sha256"]) == [f"day{part}/part.csv" for part in (0, 1, 2, 9)]


def test_a_folder_and_a_pattern_inside_it_are_a_glob_that_dvc_can_watch(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "logs" / "day1" / "part.csv", csv_text(ROWS, ",".join(NAMES)))
    write(tmp_path / "logs" / "notes.txt", "not part of the log")
    assert ingest(tmp_path / "logs", files="*/part.csv").rows == interactions()


def test_the_parts_of_a_glob_must_agree_on_their_actions(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "a.csv", csv_text(ROWS, ",".join(NAMES)))
    write(tmp_path / "b.csv", csv_text(interactions()))
    with pytest.raises(UserError, match=r"b\.csv has no column 'rating'"):
        ingest(f"{tmp_path}/*.csv")


def test_a_folder_may_hold_the_log_in_parts(ingest: Ingest, tmp_path: Path) -> None:
    for part in range(2):
        write(
            tmp_path / "raw" / f"interactions.{part}.csv", csv_text(ROWS[18 * part : 18 * part + 18], ",".join(NAMES))
        )
    assert ingest(tmp_path / "raw").rows == interactions()


def test_item_ids_follow_the_item_file_and_keep_all_its_columns(ingest: Ingest, tmp_path: Path) -> None:
    listed = [{**row, "code": n, "order": n, "item_id": "x"} for n, row in enumerate(ITEMS)]
    items = ingest(dataset(tmp_path / "raw", listed), columns={"item": "item"}).frame("items")
    assert items.raw_id.tolist() == ["i3", "i1", "i5", "i0", "i2", "i4"]
    assert items.title.tolist() == [f"Title {n}" for n in (3, 1, 5, 0, 2, 4)]
    assert items.image[0] == "images/3.png"
    assert set(items.color) == {"red"}
    assert items.code.tolist() == items.order.tolist() == ["0", "1", "2", "3", "4", "5"]
    assert items.item_id.tolist() == [0, 1, 2, 3, 4, 5]


def test_without_an_item_file_ids_follow_the_log_and_texts_are_null(ingest: Ingest, tmp_path: Path) -> None:
    items = ingest(write(tmp_path / "log.csv", csv_text(interactions()[::-1]))).frame("items")
    assert items.raw_id.tolist() == ["i5", "i4", "i3", "i2", "i1", "i0"]
    assert items[["title", "categories", "description", "image"]].isna().all(axis=None)


def test_columns_of_other_names_are_mapped(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", csv_text(ROWS, "member,sku,seen_at,stars"))
    result = ingest(path, columns={"user": "member", "item": "sku", "timestamp": "seen_at", "rating": "stars"})
    assert result.rows == interactions()
    assert "rating" in result.frame("interactions")


def test_milliseconds(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", csv_text([(user, item, time * 1000 + 7) for user, item, time in interactions()]))
    result = ingest(path, time_unit="ms")
    assert result.rows == [(user, item, time * 1_000_000 + 7000) for user, item, time in interactions()]
    assert result.summary["time_unit"] == "us"
    whole = write(tmp_path / "whole.csv", csv_text([(user, item, time * 1000) for user, item, time in interactions()]))
    result = ingest(whole, time_unit="ms")
    assert (result.rows, result.summary["time_unit"]) == (interactions(), "s")


def test_the_minimum_is_a_filter_and_no_reject(ingest: Ingest, tmp_path: Path) -> None:
    result = ingest(dataset(tmp_path / "raw"), minimum={"rating": 2}, k_core=2)
    assert result.rejects == []
    assert result.summary["steps"][0]["interactions"] == 36
    assert result.summary["steps"][1]["step"] == "minimum rating >= 2"
    assert result.summary["steps"][1]["interactions"] == sum(row[3] >= 2 for row in ROWS)
    assert result.frame("interactions").rating.min() == 2


def test_the_minimum_must_name_an_action_of_the_log(ingest: Ingest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names ratings, which is no action") as error:
        ingest(dataset(tmp_path / "raw"), minimum={"ratings": 2})
    assert "did you mean 'rating'?" in error.value.fix


def test_the_earliest_of_repeated_events_stays(ingest: Ingest, tmp_path: Path) -> None:
    again = [(user, item, time - 30 if item == "i0" else time + 30) for user, item, time in interactions()]
    result = ingest(write(tmp_path / "log.csv", csv_text(interactions() + again)))
    assert result.rows == [(user, item, time - 30 if item == "i0" else time) for user, item, time in interactions()]


def test_equal_times_stay_in_the_order_of_the_source(ingest: Ingest, tmp_path: Path) -> None:
    rows = [(user, item, START) for user, item, _ in interactions()]
    rows = rows[18:] + rows[:18][::-1]
    result = ingest(write(tmp_path / "log.csv", csv_text(rows)))
    assert [row for user in dict.fromkeys(row[0] for row in rows) for row in rows if row[0] == user] == result.rows


def test_vectors_of_a_folder_go_with_their_items(ingest: Ingest, tmp_path: Path) -> None:
    listed = [{"item": "unsold"}, *ITEMS, {"item": "unsold too"}]
    vectors = np.random.default_rng(0).normal(size=(len(listed), 5))
    folder = dataset(tmp_path / "raw", listed)
    np.save(folder / "clip_embeddings.npy", vectors)
    result = ingest(folder)
    order = {row["item"]: vector for row, vector in zip(listed, vectors, strict=True)}
    items = result.frame("items")
    for raw_id, vector in zip(items.raw_id, items.vector, strict=True):
        np.testing.assert_array_equal(vector, order[raw_id].astype(np.float32))
    assert result.summary["vector_width"] == 5
    assert "clip_embeddings.npy" in result.summary["sha256"]


def test_a_rejected_item_keeps_its_row_among_the_vectors(ingest: Ingest, tmp_path: Path) -> None:
    listed = [ITEMS[0], {"title": "no\nid"}, *ITEMS[1:]]
    folder = dataset(tmp_path / "raw", listed)
    np.save(folder / "a_embeddings.npy", np.arange(7.0)[:, None])
    items = ingest(folder, max_reject_rate=0.2).frame("items")
    assert [vector[0] for vector in items.vector] == [0, 2, 3, 4, 5, 6]


def test_of_several_vector_files_none_is_taken_and_it_is_said(
    ingest: Ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dataset(tmp_path / "raw")
    for name in ("a", "b"):
        np.save(folder / f"{name}_embeddings.npy", np.zeros((6, 2)))
    assert "vector" not in ingest(folder).frame("items")
    assert "a_embeddings.npy, b_embeddings.npy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((5, 2)), "has 5 rows, items.jsonl has 6"),
        (np.ones(6), r"float64 \[6\]"),
        (np.ones((6, 2), int), "int64"),
        (np.array([{}] * 6), "Python objects"),
    ],
)
def test_vectors_that_cannot_be_the_items_are_refused(
    ingest: Ingest,
    tmp_path: Path,
    array: npt.NDArray[np.float64] | npt.NDArray[np.int64] | npt.NDArray[np.object_],
    message: str,
) -> None:
    folder = dataset(tmp_path / "raw")
    np.save(folder / "a_embeddings.npy", array)
    with pytest.raises(UserError, match=message):
        ingest(folder)


def test_vectors_without_an_item_file_are_refused(ingest: Ingest, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "raw")
    (folder / "items.jsonl").unlink()
    np.save(folder / "a_embeddings.npy", np.ones((6, 2)))
    with pytest.raises(UserError, match="no item file beside it"):
        ingest(folder)


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "/etc/passwd",
        "images/../../x.png",
        "C:\\x.png",
        "..\\x.png",
        "a.png; /etc/passwd",
        ["a.png", "../b.png"],
        [["a.png"], ["/b.png"]],
    ],
)
def test_an_image_outside_the_dataset_folder_is_rejected(
    ingest: Ingest, tmp_path: Path, path: list[list[str] | str] | str
) -> None:
    listed: list[dict[str, Any]] = [*ITEMS[:5], {**ITEMS[5], "image": path}]
    result = ingest(dataset(tmp_path / "raw", listed), max_reject_rate=0.2)
    assert ("items.jsonl", 6, "image lies outside the dataset folder") in result.rejects


def test_the_same_item_listed_twice_counts_once(ingest: Ingest, tmp_path: Path) -> None:
    result = ingest(dataset(tmp_path / "raw", [*ITEMS, {"item": "i3", "title": "again"}]), max_reject_rate=0.2)
    assert result.rejects == [("items.jsonl", 7, "item is listed twice")]
    assert result.frame("items").title[0] == "Title 3"


def test_files_beside_the_log_are_left_alone(ingest: Ingest, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "raw")
    write(folder / "interactions.csv.dvc", "outs: []\n")
    write(folder / "README.md", "hello")
    assert list(ingest(folder).summary["sha256"]) == ["interactions.csv", "items.jsonl"]


def test_two_item_files_are_an_error(ingest: Ingest, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "raw")
    write(folder / "items.csv", "item\n")
    with pytest.raises(UserError, match=r"items\.csv and items\.jsonl are both in"):
        ingest(folder)
