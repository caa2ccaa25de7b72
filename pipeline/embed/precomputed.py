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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.embed.row_ids import WRITTEN_NAME, VectorIds, choose_ids, possible_ids
from pipeline.errors import UserError, nearest
from pipeline.printing import shown


@dataclass(frozen=True)
class PrecomputedVectors:
    """The vectors of a file.

    vectors_Rd: float32 [R, d]; rows that are empty in the file are left out.
    columns: those of the file's columns that could hold the raw id of each row.
    """

    vectors_Rd: np.ndarray
    columns: list[VectorIds] = field(default_factory=list)


@dataclass(frozen=True)
class MatchedVectors:
    """One vector per item.

    vectors_Id: float32 [I, d]. matched_by: `id` or `order`. ids_from: name of the column of ids, empty by order.
    unused_rows: number of rows that no item needed.
    """

    vectors_Id: np.ndarray
    matched_by: str
    ids_from: str
    unused_rows: int


def precomputed_vectors(path: Path, match: str, raw_ids: Sequence[str]) -> MatchedVectors:
    """Read the file and return one vector per item.

    Args:
        path: the file.
        match: `id`, `order`, or `auto` (by id if the file has ids, else by order).
        raw_ids: raw ids of the items, in the order of item_id.

    Raises:
        UserError: the file is missing, damaged or not understood; an item has no row; none of the ids is an item; it is
            not clear which column has the ids; by order, the counts differ.
    """
    precomputed = _read(path)
    ids = None if match == "order" else choose_ids(precomputed.columns, raw_ids, path)
    if ids is not None:
        rows, known = _by_id(ids, path, raw_ids)
        return MatchedVectors(precomputed.vectors_Rd[rows], "id", ids.name, len(ids.ids) - known)
    if match == "id":
        raise UserError(
            f"{path} has no raw ids",
            "embed.match is id, so each row needs the raw id of its item",
            f"bring a .parquet with a column {WRITTEN_NAME}, or a .npz or .safetensors with an array of the ids, "
            "or set embed.match to order",
        )
    return MatchedVectors(_by_order(precomputed, path, len(raw_ids)), "order", "", 0)


def _by_order(precomputed: PrecomputedVectors, path: Path, items: int) -> np.ndarray:
    if len(precomputed.vectors_Rd) != items:
        raise UserError(
            f"{path} has {len(precomputed.vectors_Rd):,} vectors for {items:,} items",
            "rows are matched by order: row i belongs to item i of data/interactions/items.parquet, from which ingest "
            "may have left items out",
            "bring vectors with raw ids (see embed.match), or put NAME_embeddings.npy beside the item file "
            "of the dataset folder, where ingest matches it",
        )
    return precomputed.vectors_Rd


def _by_id(column: VectorIds, path: Path, wanted: Sequence[str]) -> tuple[list[int], int]:
    """Return the row of each wanted id, and how many rows of the file belong to a wanted id."""
    row_of: dict[str, int] = {}
    for row, raw_id in enumerate(column.ids):
        if raw_id is not None and row_of.setdefault(raw_id, row) != row:
            raise UserError(
                f"{path} has several vectors for one raw id, such as {raw_id!r} (column {shown(column.name)})",
                "it is not clear which of these vectors belongs to the item",
                "write a file with one row per item",
            )
    missing = [raw_id for raw_id in wanted if raw_id not in row_of]
    if missing:
        first = ", ".join(map(shown, list(row_of)[:3])) or "none at all"
        raise UserError(
            f"{len(missing):,} of {len(wanted):,} items have no embedding in {path}, "
            f"first: {', '.join(map(shown, missing[:5]))}",
            f"every item needs a vector; the file's raw ids (column {shown(column.name)}) begin with {first}",
            "add the missing rows, or leave these items out of the log",
        )
    return [row_of[raw_id] for raw_id in wanted], len(wanted)


# ---------------------------------------------------------------------------------------------------- the formats


def _read(path: Path) -> PrecomputedVectors:
    if not path.is_file():
        raise UserError(
            f"{path} is not here",
            "embed.encoder precomputed reads the item vectors from this file",
            "set embed.path to a .npy, .npz, .safetensors or .parquet file",
        )
    if path.suffix not in READERS:
        raise UserError(
            f"{path} is of no known format",
            nearest(path.suffix, READERS),
            "convert the file to one of these formats, and set embed.path to the new file",
        )
    try:
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
    return PrecomputedVectors(_matrix(np.load(path, allow_pickle=False), path))


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


def _id_columns(candidates: Mapping[str, Sequence[Any]]) -> list[VectorIds]:
    columns = (possible_ids(name, values) for name, values in candidates.items())
    return [column for column in columns if column is not None]


def _read_parquet(path: Path) -> PrecomputedVectors:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import pyarrow.types as pt

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
    table = pq.read_table(path, columns=[chosen, *others])
    for name in others:
        if pt.is_string_view(fields[name]) or pt.is_binary_view(fields[name]):  # Arrow cannot filter these
            text = pa.large_string() if pt.is_string_view(fields[name]) else pa.large_binary()
            table = table.set_column(table.column_names.index(name), name, table[name].cast(text))
    table = table.filter(pc.is_valid(table[chosen]))
    widths = pc.unique(pc.list_value_length(table[chosen])).to_pylist()
    if len(widths) > 1:
        raise UserError(
            f"vectors of {path} differ in length: {', '.join(map(str, sorted(widths)[:5]))}",
            "the vectors of all items must have the same width",
            "write the file again with vectors of one width",
        )
    # The chunks are read one by one, because an Arrow list array counts its numbers in 32 bits.
    parts = [
        _matrix(chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1), path)
        for chunk in table[chosen].chunks
        if len(chunk)
    ]
    vectors_Rd = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
    return PrecomputedVectors(vectors_Rd, _id_columns({name: table[name].to_pylist() for name in others}))


READERS: dict[str, Callable[[Path], PrecomputedVectors]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
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
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number):
        raise UserError(
            f"{path} holds an array of shape {list(array.shape)} and type {array.dtype}",
            "the array must be numbers of shape [items, width]",
            "write the file again in that shape",
        )
    return array.astype(np.float32)
