"""Read vectors that the user brings in a .npy, .npz, .safetensors or .parquet file, and match them with the items.

- .npy: an array [R, d]; rows are matched by order.
- .npz: its only 2-D array of numbers; by raw id if another array has the ids of the rows, else by order.
- .safetensors: its only 2-D tensor; by raw id if the metadata (a JSON list) or a 1-D tensor has the ids, else by order.
- .parquet: its only column of lists of numbers; by raw id if another column has the ids, else by order.

The ids may have any name (row_ids.py). A .npz or .safetensors file may also have one 1-D array per item, named by the
item's raw id.

By order means that row i belongs to item_id i, which is the order of the item file or, without an item file, of the
items' first interactions in the log.

Shape legend: I items, R rows of the file, d width of the embeddings.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from pipeline.embed.row_ids import WRITTEN_NAME, VectorIds, choose_ids, possible_ids
from pipeline.errors import UserError, nearest
from pipeline.printing import shown

BLOCK_ROWS = 100_000  # vectors that are in memory at once
BLOCK_BYTES = 64 << 20  # of the vectors of a Parquet file that are decoded at once


@dataclass(frozen=True)
class PrecomputedVectors:
    """The vectors of a file.

    vectors_Rd: numbers [R, d], mapped into memory where the format allows it; rows that are empty in the file are left
    out. columns: those of the file's columns that could hold the raw id of each row.
    """

    vectors_Rd: np.ndarray
    columns: list[VectorIds] = field(default_factory=list)


@dataclass(frozen=True)
class MatchedVectors:
    """One vector per item.

    vectors_Rd: numbers [R, d] of the file. rows_I: the row of each item; None: row i belongs to item i. matched_by:
    `id` or `order`. ids_from: name of the column of ids, empty by order. unused_rows: number of rows that no item
    needed.
    """

    vectors_Rd: np.ndarray
    rows_I: np.ndarray | None
    matched_by: str
    ids_from: str
    unused_rows: int

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.vectors_Rd) if self.rows_I is None else len(self.rows_I)), self.vectors_Rd.shape[1]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the items' vectors in order, float32 [at most BLOCK_ROWS, d]."""
        for item in range(0, self.shape[0], BLOCK_ROWS):
            rows = slice(item, item + BLOCK_ROWS) if self.rows_I is None else self.rows_I[item : item + BLOCK_ROWS]
            yield np.asarray(self.vectors_Rd[rows], np.float32)

    @property
    def vectors_Id(self) -> np.ndarray:
        """Return all vectors at once, float32 [I, d]."""
        return np.concatenate([np.zeros((0, self.shape[1]), np.float32), *self.blocks()])


def precomputed_vectors(
    path: Path, match: str, raw_ids: pa.Array | Sequence[str], scratch: Path | None = None
) -> MatchedVectors:
    """Find the vector of each item in a file.

    Args:
        path: the file.
        match: `id`, `order`, or `auto` (by id if the file has ids, else by order).
        raw_ids: raw ids of the items, in the order of item_id.
        scratch: the folder for a file without a name that holds the vectors of Parquet; None: that of the system.

    Raises:
        UserError: the file is missing, damaged or not understood; an item has no row; none of the ids is an item; it is
            not clear which column has the ids; by order, the counts differ.
    """
    items = (
        pa.array(raw_ids, pa.large_string()) if not isinstance(raw_ids, pa.Array) else raw_ids.cast(pa.large_string())
    )
    precomputed = _read(path, scratch)
    ids = None if match == "order" else choose_ids(precomputed.columns, items, path)
    if ids is not None:
        rows_I = _by_id(ids, path, items)
        return MatchedVectors(precomputed.vectors_Rd, rows_I, "id", ids.name, len(ids.ids) - len(items))
    if match == "id":
        raise UserError(
            f"{path} has no raw ids",
            "embed.match is id, so each row needs the raw id of its item",
            f"bring a .parquet with a column {WRITTEN_NAME}, or a .npz or .safetensors with an array of the ids, "
            "or set embed.match to order",
        )
    if len(precomputed.vectors_Rd) != len(items):
        raise UserError(
            f"{path} has {len(precomputed.vectors_Rd):,} vectors for {len(items):,} items",
            "rows are matched by order: row i belongs to item i of data/interactions/items.parquet, from which ingest "
            "may have left items out",
            "bring vectors with raw ids (see embed.match), or put NAME_embeddings.npy beside the item file "
            "of the dataset folder, where ingest matches it",
        )
    return MatchedVectors(precomputed.vectors_Rd, None, "order", "", 0)


def _by_id(column: VectorIds, path: Path, wanted: pa.Array) -> np.ndarray:
    """Return the row of each wanted id, int64 [I]."""
    if not column.unique:
        seen: set[str] = set()
        for raw_id in column.ids.drop_null().to_pylist():
            if raw_id in seen:
                break
            seen.add(raw_id)
        raise UserError(
            f"{path} has several vectors for one raw id, such as {raw_id!r} (column {shown(column.name)})",
            "it is not clear which of these vectors belongs to the item",
            "write a file with one row per item",
        )
    pa.default_memory_pool().release_unused()  # the hash table of another look at the ids
    rows = pc.index_in(wanted, value_set=column.ids)
    if rows.null_count:
        missing = wanted.filter(pc.is_null(rows)).slice(0, 5).to_pylist()
        first = ", ".join(map(shown, column.ids.drop_null().slice(0, 3).to_pylist())) or "none at all"
        raise UserError(
            f"{rows.null_count:,} of {len(wanted):,} items have no embedding in {path}, "
            f"first: {', '.join(map(shown, missing))}",
            f"every item needs a vector; the file's raw ids (column {shown(column.name)}) begin with {first}",
            "add the missing rows, or leave these items out of the log",
        )
    rows_I: np.ndarray = rows.to_numpy()
    return rows_I


# ---------------------------------------------------------------------------------------------------- the formats


def _read(path: Path, scratch: Path | None) -> PrecomputedVectors:
    if not path.is_file():
        raise UserError(
            f"{path} is not here",
            "embed.encoder precomputed reads the item vectors from this file",
            "set embed.path to a .npy, .npz, .safetensors or .parquet file",
        )
    known = [*READERS, ".parquet"]
    if path.suffix not in known:
        raise UserError(
            f"{path} is of no known format",
            nearest(path.suffix, known),
            "convert the file to one of these formats, and set embed.path to the new file",
        )
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path, scratch)
        return READERS[path.suffix](path)
    except UserError:
        raise
    except Exception as error:  # each library raises another exception for a damaged file
        raise UserError(
            f"{path} cannot be read: {shown(error)}",
            "the file is damaged or was cut short",
            "write or copy the file again",
        ) from None


def _read_npy(path: Path) -> PrecomputedVectors:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return PrecomputedVectors(_matrix(array, path))


def _read_npz(path: Path) -> PrecomputedVectors:
    arrays = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            try:
                arrays[name] = file[name]
            except ValueError:  # an array of Python objects would have to be unpickled, which can run code
                raise UserError(
                    f"{path}: {shown(name)} is an array of Python objects",
                    "such arrays are not opened, because opening them can run code",
                    f"save the ids as texts: {shown(name)}=numpy.array(ids, dtype=str)",
                ) from None
    return _from_arrays(arrays, {}, path)


def _read_safetensors(path: Path) -> PrecomputedVectors:
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # NumPy knows no bfloat16
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata() or {}
    arrays = {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in tensors.items()}
    lists = {name: _listed(text) for name, text in metadata.items()}
    return _from_arrays(arrays, {name: ids for name, ids in lists.items() if ids is not None}, path)


def _listed(text: str) -> list[Any] | None:
    """Return the ids that a text of the metadata lists: a JSON list, a JSON object of id -> row, or a,b,c."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text.split(",") if "," in text else None
    if isinstance(value, dict) and sorted(map(str, value.values())) == sorted(map(str, range(len(value)))):
        return sorted(value, key=lambda raw_id: int(value[raw_id]))  # {"b": 1, "a": 0} -> a, b
    return value if isinstance(value, list) else None


def _from_arrays(arrays: Mapping[str, np.ndarray], lists: Mapping[str, list[Any]], path: Path) -> PrecomputedVectors:
    """Find the vectors and the possible ids among named arrays and, beside them, named lists."""
    numbers = {name: array for name, array in arrays.items() if np.issubdtype(array.dtype, np.number)}
    matrices = [name for name, array in numbers.items() if array.ndim == 2 and array.shape[1] > 1]
    matrices = matrices or [name for name, array in numbers.items() if array.ndim == 2]
    if len(matrices) > 1:  # integers beside floats are no vectors
        matrices = [name for name in matrices if arrays[name].dtype.kind == "f"] or matrices
    if not matrices and numbers and {array.shape for array in arrays.values()} == {next(iter(numbers.values())).shape}:
        column = possible_ids("keys", numbers)
        if next(iter(numbers.values())).ndim == 1 and column is not None:
            return PrecomputedVectors(_matrix(np.stack(list(numbers.values())), path), [column])
    chosen = _only(matrices, list(arrays), "2-D array of numbers", path)
    vectors_Rd = _matrix(arrays[chosen], path)

    candidates: dict[str, list[Any]] = {}
    for name, array in arrays.items():
        if name != chosen and array.size == len(vectors_Rd) and array.shape in ((array.size,), (array.size, 1)):
            candidates[name] = array.ravel().tolist()
    for name, values in lists.items():
        if name == "raw_ids" and len(values) != len(vectors_Rd):
            raise UserError(
                f"{path} has {len(vectors_Rd):,} vectors and {len(values):,} raw_ids",
                "every vector needs one raw id",
                "write the file again, with raw_ids for all vectors",
            )
        if len(values) == len(vectors_Rd):
            candidates[name] = values
    return PrecomputedVectors(vectors_Rd, _id_columns(candidates))


def _id_columns(candidates: Mapping[str, Iterable[Any]]) -> list[VectorIds]:
    columns = (possible_ids(name, values) for name, values in candidates.items())
    return [column for column in columns if column is not None]


def _read_parquet(path: Path, scratch: Path | None) -> PrecomputedVectors:
    fields = {field.name: field.type for field in pq.read_schema(path)}
    lists = {
        name: kind.value_type
        for name, kind in fields.items()
        if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)
    }
    numbers = [name for name, kind in lists.items() if pt.is_floating(kind) or pt.is_integer(kind)]
    if len(numbers) > 1:  # lists of integers beside one list of floats are no vectors
        numbers = [name for name in numbers if pt.is_floating(lists[name])] or numbers
    chosen = _only(numbers or list(lists), list(fields), "column of vectors", path)
    others = [name for name, kind in fields.items() if not pt.is_nested(kind)]
    others = [WRITTEN_NAME] if WRITTEN_NAME in others else others
    vectors_Rd, there = _vectors_of_parquet(path, chosen, scratch)
    columns = {}
    for name in others:
        column = pq.read_table(path, columns=[name])[name]
        if pt.is_string_view(fields[name]) or pt.is_binary_view(fields[name]):  # Arrow cannot filter these
            column = column.cast(pa.large_string() if pt.is_string_view(fields[name]) else pa.large_binary())
        columns[name] = column.filter(there)
    return PrecomputedVectors(vectors_Rd, _id_columns(columns))


def _vectors_of_parquet(path: Path, name: str, scratch: Path | None) -> tuple[np.ndarray, pa.Array]:
    """Copy a column of lists into a mapped file without a name, and return (float32 [R, d], rows with a list)."""
    widths: set[int] = set()
    there = []
    rows = 0
    with pq.ParquetFile(path, pre_buffer=False) as source, tempfile.TemporaryFile(dir=scratch) as copy:
        a_row = sum(source.metadata.row_group(group).total_byte_size for group in range(source.num_row_groups))
        a_row = a_row // max(source.metadata.num_rows, 1)
        for batch in source.iter_batches(max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(a_row, 1))), columns=[name]):
            valid = pc.is_valid(batch[name])
            lists = batch[name].filter(valid)
            there.append(valid)
            widths.update(pc.unique(pc.list_value_length(lists)).to_pylist())
            if len(widths) == 1 and len(lists):
                numbers = _matrix(lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1), path)
                copy.write(np.ascontiguousarray(numbers, np.float32).data)
                rows += len(lists)
        if len(widths) > 1:
            raise UserError(
                f"vectors of {path} differ in length: {', '.join(map(str, sorted(widths)[:5]))}",
                "the vectors of all items must have the same width",
                "write the file again with vectors of one width",
            )
        shape = (rows, widths.pop() if widths else 0)
        copy.flush()
        vectors_Rd = np.memmap(copy, np.float32, "r", shape=shape) if rows * shape[1] else np.zeros(shape, np.float32)
    return vectors_Rd, pa.chunked_array(there, pa.bool_())


READERS: dict[str, Callable[[Path], PrecomputedVectors]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}


def _only(candidates: list[str], names: list[str], what: str, path: Path) -> str:
    if len(candidates) != 1:
        raise UserError(
            f"{path}: expected one {what}, found {len(candidates) or 'none'}",
            f"the file holds {', '.join(map(shown, names))}",
            f"bring a file with one {what}, or choose another embed.encoder if the dataset has no vectors",
        )
    return candidates[0]


def _matrix(array: np.ndarray, path: Path) -> np.ndarray:
    """Return an array of numbers [rows, width] as it is. Raises UserError for another one."""
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number):
        raise UserError(
            f"{path} holds an array of shape {list(array.shape)} and type {array.dtype}",
            "the array must be numbers of shape [items, width]",
            "write the file again in that shape",
        )
    return array
