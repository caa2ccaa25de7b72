"""Vectors that the user brings: three formats, two ways to match them, and what can be wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from pipeline.embed import precomputed
from pipeline.embed.precomputed import precomputed_vectors
from pipeline.errors import UserError

IDS = ["b", "a", "7", "d"]
VECTORS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def write(path: Path, vectors: np.ndarray = VECTORS, raw_ids: list[Any] | None = None, name: str = "vector") -> Path:
    if path.suffix == ".npy":
        np.save(path, vectors)
    elif path.suffix == ".safetensors":
        save_file(
            {name: torch.from_numpy(vectors), "scale": torch.ones(3)},
            path,
            metadata={"raw_ids": json.dumps(raw_ids)} if raw_ids else None,
        )
    else:
        columns = {name: pa.array(list(vectors)), "title": pa.array(["x"] * len(vectors))}
        pq.write_table(pa.table({"raw_id": pa.array(raw_ids), **columns} if raw_ids else columns), path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_without_ids_row_i_belongs_to_item_i(tmp_path: Path, suffix: str) -> None:
    got = precomputed_vectors(write(tmp_path / f"v{suffix}"), "auto", IDS)
    assert (got.vectors_Id == VECTORS).all()
    assert (got.matched_by, got.ids_from, got.unused_rows) == ("order", "", 0)


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_with_ids_rows_find_their_item_and_the_rest_is_counted(tmp_path: Path, suffix: str) -> None:
    shuffled = [2, 0, 3, 1]
    extra = np.vstack([VECTORS[shuffled], VECTORS[:2] + 9])
    path = write(tmp_path / f"v{suffix}", extra, [*(IDS[i] for i in shuffled), "unknown", "other"])
    got = precomputed_vectors(path, "auto", IDS)
    assert (got.vectors_Id == VECTORS).all()
    assert (got.matched_by, got.unused_rows) == ("id", 2)


def test_order_may_be_asked_for_although_there_are_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "v.parquet", raw_ids=["w", "x", "y", "z"])
    assert (precomputed_vectors(path, "order", IDS).vectors_Id == VECTORS).all()


def test_ids_may_be_numbers_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "v.parquet", raw_ids=[11, 7, 3, 5])
    assert (precomputed_vectors(path, "id", ["3", "7"]).vectors_Id == VECTORS[[2, 1]]).all()


@pytest.mark.parametrize("kind", [pa.list_(pa.float16()), pa.list_(pa.float32(), 3), pa.large_list(pa.float64())])
def test_every_kind_of_parquet_list_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    halves = VECTORS.astype(np.float16)
    pq.write_table(pa.table({"embedding": pa.array(list(halves), kind)}), tmp_path / "v.parquet", row_group_size=3)
    assert (precomputed_vectors(tmp_path / "v.parquet", "auto", IDS).vectors_Id == halves.astype(np.float32)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_numbers_of_any_type_become_float32(tmp_path: Path, dtype: npt.DTypeLike) -> None:
    vectors = (10 * VECTORS).astype(dtype)
    got = precomputed_vectors(write(tmp_path / "v.npy", vectors), "auto", IDS).vectors_Id
    assert got.dtype == np.float32
    assert (got == vectors.astype(np.float32)).all()


def test_bfloat16_tensors_are_read(tmp_path: Path) -> None:
    save_file({"v": torch.from_numpy(VECTORS).bfloat16()}, tmp_path / "v.safetensors")
    got = precomputed_vectors(tmp_path / "v.safetensors", "auto", IDS).vectors_Id
    assert got == pytest.approx(VECTORS, rel=1e-2)


# ------------------------------------------------------------------------------------------- ids under any name

SHUFFLED = [2, 0, 3, 1]


def with_ids(path: Path, **columns: Any) -> Path:
    """A file of the shuffled vectors and further columns or arrays of their rows."""
    vectors = VECTORS[SHUFFLED]
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {name: np.array(values) for name, values in columns.items()}
        np.savez(path, vectors=vectors, **arrays)
    elif path.suffix == ".safetensors":
        numbers = {name: torch.tensor(values) for name, values in columns.items() if not isinstance(values[0], str)}
        texts = {name: json.dumps(values) for name, values in columns.items() if isinstance(values[0], str)}
        save_file({"emb": torch.from_numpy(vectors), **numbers}, path, metadata=texts or None)
    else:
        pq.write_table(pa.table({**columns, "emb": pa.array(list(vectors))}), path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
@pytest.mark.parametrize(
    "name", ["item_id", "asin", "item", "id", "ids", "product_id", "SKU", "parentAsin", "whatever"]
)
def test_ids_are_found_under_any_name(tmp_path: Path, suffix: str, name: str) -> None:
    got = precomputed_vectors(with_ids(tmp_path / f"v{suffix}", **{name: [IDS[i] for i in SHUFFLED]}), "auto", IDS)
    assert (got.vectors_Id == VECTORS).all()
    assert (got.matched_by, got.ids_from) == ("id", name)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
@pytest.mark.parametrize("name", ["item_id", "whatever"])
def test_ids_that_are_numbers_are_found_under_any_name(tmp_path: Path, suffix: str, name: str) -> None:
    numbers = [70000000001, 12, 5, 900]
    got = precomputed_vectors(
        with_ids(tmp_path / f"v{suffix}", **{name: [numbers[i] for i in SHUFFLED]}), "auto", [str(n) for n in numbers]
    )
    assert (got.vectors_Id == VECTORS).all()


@pytest.mark.parametrize("written", ["7.0", "7", "7e0"])
@pytest.mark.parametrize("found", [7, 7.0, "7", "7.0", " 7 ", b"7", "7e0", "7.", "7.00"])
def test_a_whole_number_is_one_id_however_it_is_written(tmp_path: Path, written: str, found: Any) -> None:
    others: dict[type, list[Any]] = {int: [1, 2, 3], float: [1.0, 2.0, 3.0], bytes: [b"1", b"2", b"3"]}
    path = with_ids(tmp_path / "v.parquet", sku=pa.array([found, *others.get(type(found), ["1", "2", "3"])]))
    got = precomputed_vectors(path, "auto", ["1", written, "3", "2"])
    assert (got.vectors_Id == VECTORS[SHUFFLED][[1, 0, 3, 2]]).all()


@pytest.mark.parametrize("other", ["+7", "007", "7.5"])
def test_what_ingest_reads_as_a_name_is_no_number_here(tmp_path: Path, other: str) -> None:
    path = with_ids(tmp_path / "v.parquet", sku=pa.array([other, "7", "2", "3"]))
    got = precomputed_vectors(path, "auto", ["7", other, "3", "2"])
    assert (got.vectors_Id == VECTORS[SHUFFLED][[1, 0, 3, 2]]).all()


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_kind_of_parquet_text_holds_ids(tmp_path: Path, kind: pa.DataType) -> None:
    path = with_ids(tmp_path / "v.parquet", asin=pa.array([IDS[i] for i in SHUFFLED]).cast(kind))
    assert (precomputed_vectors(path, "auto", IDS).vectors_Id == VECTORS).all()


@pytest.mark.parametrize("kind", [pa.uint16(), pa.float64(), pa.decimal128(20, 0)])
def test_every_kind_of_parquet_number_holds_ids(tmp_path: Path, kind: pa.DataType) -> None:
    numbers = [10, 3, 0, 7]
    path = with_ids(tmp_path / "v.parquet", code=pa.array([numbers[i] for i in SHUFFLED]).cast(kind))
    assert (precomputed_vectors(path, "auto", [str(n) for n in numbers]).vectors_Id == VECTORS).all()


@pytest.mark.parametrize("written", ["d-list", '["7", "b", "d", "a"]', '{"7": 0, "a": 3, "b": 1, "d": 2}', "7,b,d,a"])
def test_metadata_lists_ids_in_three_ways(tmp_path: Path, written: str) -> None:
    path = tmp_path / "v.safetensors"
    save_file({"emb": torch.from_numpy(VECTORS[SHUFFLED])}, path, metadata={"item_ids": written})
    got = precomputed_vectors(path, "auto", IDS)
    assert got.matched_by == ("order" if written == "d-list" else "id")
    assert (got.vectors_Id == (VECTORS[SHUFFLED] if written == "d-list" else VECTORS)).all()


def test_the_index_of_pandas_has_ids_too(tmp_path: Path) -> None:
    frame = pd.DataFrame({"vector": list(VECTORS[SHUFFLED])}, index=[IDS[i] for i in SHUFFLED])
    frame.to_parquet(tmp_path / "v.parquet")
    assert (precomputed_vectors(tmp_path / "v.parquet", "auto", IDS).vectors_Id == VECTORS).all()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_one_array_per_item_is_matched_by_the_names_of_the_arrays(tmp_path: Path, suffix: str) -> None:
    rows = {IDS[i]: VECTORS[i] for i in SHUFFLED}
    path = tmp_path / f"v{suffix}"
    np.savez(path, **rows) if suffix == ".npz" else save_file({k: torch.from_numpy(v) for k, v in rows.items()}, path)
    assert (precomputed_vectors(path, "auto", IDS).vectors_Id == VECTORS).all()
    with pytest.raises(UserError, match="none of the ids in"):
        precomputed_vectors(path, "auto", ["w", "x", "y", "z"])


def test_columns_of_other_properties_are_no_ids(tmp_path: Path) -> None:
    path = with_ids(
        tmp_path / "v.parquet",
        title=["d", "one", "two", "three"],
        price=[9.5, 7.0, 1.0, 2.0],
        year=[7, 7, 2001, 2002],
        sold=[True, False, True, False],
        tags=[["a"], ["b"], [], ["d"]],
        movie_id=[IDS[i] for i in SHUFFLED],
    )
    assert precomputed_vectors(path, "auto", IDS).ids_from == "movie_id"


def test_numbers_that_are_no_items_leave_the_order(tmp_path: Path) -> None:
    path = with_ids(tmp_path / "v.parquet", index=[0, 1, 2, 3], title=["one", "two", "three", "four"])
    assert precomputed_vectors(path, "auto", IDS).matched_by == "order"


def test_row_numbers_come_after_ids(tmp_path: Path) -> None:
    path = with_ids(tmp_path / "v.parquet", index=[0, 1, 2, 3], item_id=[2, 0, 3, 1])
    assert (precomputed_vectors(path, "auto", ["0", "1", "2", "3"]).vectors_Id == VECTORS).all()


def test_two_columns_that_differ_are_refused(tmp_path: Path) -> None:
    path = with_ids(tmp_path / "v.parquet", item=["0", "1", "2", "3"], item_id=[2, 0, 3, 1])
    with pytest.raises(UserError, match="item and item_id could both be the items' ids") as caught:
        precomputed_vectors(path, "auto", ["0", "1", "2", "3"])
    assert "raw_id" in caught.value.fix


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_ids_none_of_which_is_known_are_refused(tmp_path: Path, suffix: str) -> None:
    path = with_ids(tmp_path / f"v{suffix}", item_id=["w", "x", "y", "z"])
    with pytest.raises(UserError, match=r"none of the ids in .* \(item_id: w, x, y\) is an item") as caught:
        precomputed_vectors(path, "auto", IDS)
    assert "embed.match to order" in caught.value.fix
    assert precomputed_vectors(path, "order", IDS).matched_by == "order"


def test_an_id_that_is_missing_belongs_to_no_item(tmp_path: Path) -> None:
    table = pa.table({"asin": ["d", None, "b", "a", "7"], "v": [[4.0], [9.0], [1.0], [2.0], [3.0]]})
    pq.write_table(table, tmp_path / "v.parquet")
    got = precomputed_vectors(tmp_path / "v.parquet", "auto", IDS)
    assert got.vectors_Id.ravel().tolist() == [1, 2, 3, 4]
    assert got.unused_rows == 1


def test_arrays_of_python_objects_are_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", v=VECTORS, ids=np.array(IDS, dtype=object))
    with pytest.raises(UserError, match="ids is an array of Python objects") as caught:
        precomputed_vectors(tmp_path / "v.npz", "auto", IDS)
    assert "dtype=str" in caught.value.fix


# ---------------------------------------------------------------------------------------------------- what can be wrong


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_by_order_the_counts_must_agree(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UserError, match="4 vectors for 3 items"):
        precomputed_vectors(write(tmp_path / f"v{suffix}"), "order", IDS[:3])


def test_items_without_an_embedding_are_counted_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "v.parquet", raw_ids=IDS)
    with pytest.raises(UserError, match=r"2 of 4 items have no embedding in .*, first: new1, new2"):
        precomputed_vectors(path, "auto", ["a", "new1", "b", "new2"])


def test_an_empty_cell_is_an_item_without_an_embedding(tmp_path: Path) -> None:
    table = pa.table({"raw_id": IDS, "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]])})
    pq.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(UserError, match=r"1 of 4 items have no embedding in .*, first: a"):
        precomputed_vectors(tmp_path / "v.parquet", "auto", IDS)


def test_two_rows_for_one_item_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "v.parquet", raw_ids=["a", "b", "a", "c"])
    with pytest.raises(UserError, match="several vectors for one raw id, such as 'a'"):
        precomputed_vectors(path, "auto", ["a"])


def test_ids_that_the_file_does_not_have_cannot_be_matched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no raw ids"):
        precomputed_vectors(write(tmp_path / "v.npy"), "id", IDS)


def test_as_many_ids_as_vectors_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 vectors and 3 raw_ids"):
        precomputed_vectors(write(tmp_path / "v.safetensors", raw_ids=IDS[:3]), "auto", IDS)


def test_a_dataset_without_vectors_says_that_there_is_no_column_of_them(tmp_path: Path) -> None:
    pq.write_table(pa.table({"raw_id": IDS, "title": IDS}), tmp_path / "items.parquet")
    with pytest.raises(UserError, match="expected one column of vectors, found none") as caught:
        precomputed_vectors(tmp_path / "items.parquet", "auto", IDS)
    assert caught.value.why == "the file holds raw_id, title"


def test_vectors_of_different_length_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"vector": [[1.0, 2.0], [3.0], [4.0, 5.0], [6.0, 7.0]]}), tmp_path / "v.parquet")
    with pytest.raises(UserError, match="differ in length: 1, 2"):
        precomputed_vectors(tmp_path / "v.parquet", "auto", IDS)


@pytest.mark.parametrize("array", [np.ones(4), np.ones((4, 2, 2)), np.array([["a"], ["b"]])])
def test_what_is_no_table_of_numbers_is_refused(
    tmp_path: Path, array: npt.NDArray[np.float64] | npt.NDArray[np.str_]
) -> None:
    with pytest.raises(UserError, match="holds an array of shape"):
        precomputed_vectors(write(tmp_path / "v.npy", array), "auto", IDS)


def test_a_pickled_array_is_never_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        precomputed_vectors(tmp_path / "v.npy", "auto", IDS)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_a_file_cut_short_is_named(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"v{suffix}")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        precomputed_vectors(path, "auto", IDS)


def test_a_missing_file_and_an_unknown_format_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"v\.npy is not here"):
        precomputed_vectors(tmp_path / "v.npy", "auto", IDS)
    (tmp_path / "v.csv").write_text("1,2\n")
    with pytest.raises(UserError, match=r"v\.csv is of no known format"):
        precomputed_vectors(tmp_path / "v.csv", "auto", IDS)


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors"])
@pytest.mark.parametrize("block", [1, 3, 1000])
def test_blocks_hold_the_vectors_of_all_items_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, block: int
) -> None:
    monkeypatch.setattr(precomputed, "BLOCK_ROWS", block)
    rng = np.random.default_rng(block)
    vectors = rng.normal(size=(20, 3)).astype(np.float32)
    order = rng.permutation(20)[:13]
    raw_ids = [f"i{row}" for row in range(20)]
    path = write(tmp_path / f"v{suffix}", vectors, None if suffix == ".npy" else raw_ids)
    if suffix == ".npy":
        got = precomputed_vectors(path, "auto", raw_ids, tmp_path)
        expected = vectors
    else:
        got = precomputed_vectors(path, "auto", pa.array([raw_ids[row] for row in order]), tmp_path)
        expected = vectors[order]
    blocks = list(got.blocks())
    assert all(len(part) <= block and part.dtype == np.float32 for part in blocks)
    assert (np.concatenate(blocks) == expected).all()
    assert got.shape == expected.shape
    assert list(tmp_path.iterdir()) == [path]  # the copy of a Parquet file's vectors has no name


def test_rows_without_a_vector_are_left_out_in_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precomputed, "BLOCK_ROWS", 2)
    lists = [None, [1.0, 2.0], None, None, [3.0, 4.0], [5.0, 6.0], None]
    table = pa.table({"raw_id": list("abcdefg"), "v": pa.array(lists, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "v.parquet")
    got = precomputed_vectors(tmp_path / "v.parquet", "id", ["f", "b", "e"])
    assert got.vectors_Id.tolist() == [[5, 6], [1, 2], [3, 4]]
    assert got.unused_rows == 0


def test_vectors_of_two_widths_in_two_blocks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precomputed, "BLOCK_ROWS", 1)
    pq.write_table(pa.table({"v": [[1.0, 2.0], [1.0], [1.0, 2.0, 3.0]]}), tmp_path / "v.parquet")
    with pytest.raises(UserError, match="differ in length: 1, 2, 3"):
        precomputed_vectors(tmp_path / "v.parquet", "order", IDS)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_file_without_a_row_has_no_vector(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    if suffix == ".npy":
        np.save(path, np.zeros((0, 3), np.float32))
    else:
        pq.write_table(pa.table({"v": pa.array([], pa.list_(pa.float32()))}), path)
    with pytest.raises(UserError, match="0 vectors for 4 items"):
        precomputed_vectors(path, "auto", IDS)
