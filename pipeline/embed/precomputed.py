"""Vectors that the user brings: a .npy, .safetensors or .parquet file.

- .npy: an array [rows, d]. By order.
- .safetensors: its only 2-D tensor; by raw id where the metadata has `raw_ids` (a JSON list), else by order.
- .parquet: its only column of lists; by raw id where there is a column `raw_id`, else by order.

By order means: row i belongs to item_id i, which is the order of the item file, or of first appearance in the log
where there is none.

Shape legend: I items, R rows of the file, d embedding width.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import UserError, nearest


@dataclass(frozen=True)
class PrecomputedVectors:
    """vectors_Rd: float32 [R, d]; a row that the file leaves empty is not among them. raw_ids: of each row, or None."""

    vectors_Rd: np.ndarray
    raw_ids: list[str] | None


def precomputed_vectors(path: Path, match: str, raw_ids: Sequence[str]) -> tuple[np.ndarray, str, int]:
    """(float32 [I, d], how rows were matched: `id` or `order`, rows of the file that no item needed).

    Args:
        path: the file.
        match: `id`, `order`, or `auto` (by id where the file has ids).
        raw_ids: of the items, in the order of item_id.

    Raises:
        UserError: the file is missing, damaged or not understood; an item has no row; by order, the counts differ.
    """
    precomputed = _read(path)
    if match == "id" and precomputed.raw_ids is None:
        raise UserError(
            f"{path} has no raw ids",
            "embed.match is id",
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
            "matched by order, row i belongs to item i of data/interactions/items.parquet; ingest may have "
            "left items out",
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
            "it is not clear which one is meant",
            "keep one row per item",
        )
    missing = [raw_id for raw_id in wanted if raw_id not in row_of]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(wanted):,} items have no embedding in {path}, first: {', '.join(missing[:5])}",
            f"every item needs a vector; raw ids of the file look like {', '.join(found[:3]) or 'nothing'}",
            "add the missing rows, or leave these items out of the log",
        )
    return [row_of[raw_id] for raw_id in wanted]


# ---------------------------------------------------------------------------------------------------- the formats


def _read(path: Path) -> PrecomputedVectors:
    if not path.is_file():
        raise UserError(
            f"{path} is not here",
            "embed.encoder precomputed reads the item vectors from it",
            "set embed.path to a .npy, .safetensors or .parquet file",
        )
    if path.suffix not in READERS:
        raise UserError(f"{path} is of no known format", nearest(path.suffix, READERS), "convert it to one of them")
    try:
        return READERS[path.suffix](path)
    except UserError:
        raise
    except Exception as error:  # each library has its own words for a damaged file
        raise UserError(
            f"{path} cannot be read: {error}", "the file is damaged or was cut short", "write it again"
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
            f"{path} has {len(vectors_Rd):,} vectors and {len(names):,} raw_ids", "they must agree", "write it again"
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
            "all items need the same width",
            "write it again",
        )
    # chunk by chunk: one Arrow list array counts its numbers in 32 bits
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
            f"it holds {', '.join(names)}",
            "bring a file with one, or choose another embed.encoder if the dataset has no vectors",
        )
    return candidates[0]


def _matrix(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number):
        raise UserError(
            f"{path} holds an array of shape {list(array.shape)} and type {array.dtype}",
            "expected numbers [items, width]",
            "write it again",
        )
    return array.astype(np.float32)
