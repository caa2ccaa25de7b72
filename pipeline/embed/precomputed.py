"""Read vectors that the user brings in a .npy, .safetensors or .parquet file, and match their rows with the items.

- .npy: an array [R, d]; rows are matched by order.
- .safetensors: its only 2-D tensor; by raw id if the metadata has `raw_ids` (a JSON list), else by order.
- .parquet: its only column of lists; by raw id if there is a column `raw_id`, else by order.

By order means that row i belongs to item_id i, which is the order of the item file or, without an item file, of the
items' first interactions in the log.

Shape legend: I items, R rows of the file, d width of the embeddings.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import UserError, nearest


@dataclass(frozen=True)
class PrecomputedVectors:
    """The vectors of a file.

    vectors_Rd: float32 [R, d]; rows that are empty in the file are left out. raw_ids: raw id of each row, or None.
    """

    vectors_Rd: np.ndarray
    raw_ids: list[str] | None


def precomputed_vectors(path: Path, match: str, raw_ids: Sequence[str]) -> tuple[np.ndarray, str, int]:
    """Read the file and return one vector per item.

    Args:
        path: the file.
        match: `id`, `order`, or `auto` (by id if the file has ids, else by order).
        raw_ids: raw ids of the items, in the order of item_id.

    Returns:
        (float32 [I, d], how rows were matched: `id` or `order`, the number of rows that no item needed)

    Raises:
        UserError: the file is missing, damaged or not understood; an item has no row; by order, the counts differ.
    """
    precomputed = _read(path)
    if match == "id" and precomputed.raw_ids is None:
        raise UserError(
            f"{path} has no raw ids",
            "embed.match is id, so each row needs the raw id of its item",
            "bring a .parquet with a column raw_id or a .safetensors with raw_ids in its metadata, "
            "or set embed.match to order",
        )
    if match == "order" or precomputed.raw_ids is None:
        return _by_order(precomputed, path, len(raw_ids)), "order", 0
    rows = _by_id(precomputed.raw_ids, path, raw_ids)
    return precomputed.vectors_Rd[rows], "id", len(precomputed.raw_ids) - len(rows)


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


def _by_id(found: list[str], path: Path, wanted: Sequence[str]) -> list[int]:
    row_of = {raw_id: row for row, raw_id in enumerate(found)}
    if len(row_of) < len(found):
        twice = next(raw_id for row, raw_id in enumerate(found) if row_of[raw_id] != row)
        raise UserError(
            f"{path} has several vectors for one raw id, such as {twice!r}",
            "it is not clear which of these vectors belongs to the item",
            "write a file with one row per item",
        )
    missing = [raw_id for raw_id in wanted if raw_id not in row_of]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(wanted):,} items have no embedding in {path}, first: {', '.join(missing[:5])}",
            f"every item needs a vector; the file's raw ids begin with {', '.join(found[:3]) or 'none at all'}",
            "add the missing rows, or leave these items out of the log",
        )
    return [row_of[raw_id] for raw_id in wanted]


# ---------------------------------------------------------------------------------------------------- the formats


def _read(path: Path) -> PrecomputedVectors:
    if not path.is_file():
        raise UserError(
            f"{path} is not here",
            "embed.encoder precomputed reads the item vectors from this file",
            "set embed.path to a .npy, .safetensors or .parquet file",
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
            f"{path} cannot be read: {error}", "the file is damaged or was cut short", "write or copy the file again"
        ) from None


def _read_npy(path: Path) -> PrecomputedVectors:
    return PrecomputedVectors(_matrix(np.load(path, allow_pickle=False), path), None)


def _read_safetensors(path: Path) -> PrecomputedVectors:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # NumPy knows no bfloat16
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        raw_ids = (file.metadata() or {}).get("raw_ids")
    matrices = [name for name, tensor in tensors.items() if tensor.ndim == 2]
    vectors_Rd = _matrix(tensors[_only(matrices, list(tensors), "2-D tensor", path)].float().numpy(), path)
    if raw_ids is None:
        return PrecomputedVectors(vectors_Rd, None)
    names = [str(raw_id) for raw_id in json.loads(raw_ids)]
    if len(names) != len(vectors_Rd):
        raise UserError(
            f"{path} has {len(vectors_Rd):,} vectors and {len(names):,} raw_ids",
            "every vector needs one raw id",
            "write the file again, with raw_ids for all vectors",
        )
    return PrecomputedVectors(vectors_Rd, names)


def _read_parquet(path: Path) -> PrecomputedVectors:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import pyarrow.types as pt

    fields = {field.name: field.type for field in pq.read_schema(path)}
    lists = [
        name
        for name, kind in fields.items()
        if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)
    ]
    chosen = _only(lists, list(fields), "column of vectors", path)
    table = pq.read_table(path, columns=[chosen, *(["raw_id"] if "raw_id" in fields else [])])
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
    return PrecomputedVectors(vectors_Rd, [str(v) for v in table["raw_id"].to_pylist()] if "raw_id" in fields else None)


READERS: dict[str, Callable[[Path], PrecomputedVectors]] = {
    ".npy": _read_npy,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}


def _only(candidates: list[str], names: list[str], what: str, path: Path) -> str:
    if len(candidates) != 1:
        raise UserError(
            f"{path}: expected one {what}, found {len(candidates) or 'none'}",
            f"the file holds {', '.join(names)}",
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
