"""Write Parquet and safetensors in blocks, and map safetensors into memory, so that no file has to fit into memory.

Equal content gives equal bytes, however it is divided into blocks: a row group has 1,000,000 rows, and is handed to
Arrow in pieces of 100,000 rows, because a page ends where a piece ends. Arrow ends a page of numbers after 20,000 rows
in any case, so that a row group of numbers has the same bytes in pieces as it has at once.
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.manifest import writing

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS = 1_000_000
PIECE_ROWS = 100_000
HEADER_ALIGNMENT = 8  # of the header of safetensors, in bytes
# Types of arrays that are written and mapped, by their names in safetensors, in the order of a file
TYPES = {"I64": "<i8", "F64": "<f8", "F32": "<f4", "I32": "<i4"}


def write_rows(
    path: Path, schema: "pa.Schema", blocks: Iterable["pa.Table"], metadata: dict[str, str] | None = None
) -> int:
    """Write tables end to end as one Parquet file, and return the number of rows.

    About one row group is in memory at once.

    Args:
        schema: that of all blocks.
        metadata: goes into the file's schema and replaces the metadata of `schema`.

    Raises:
        UserError: the file cannot be written; an earlier version is unchanged.
    """
    import pyarrow.parquet as pq

    schema = schema.empty_table().replace_schema_metadata(metadata).schema
    rows = 0
    with writing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(schema, blocks):
            writer.write_table(_in_pieces(group), row_group_size=GROUP_ROWS)
            rows += len(group)
    return rows


def _groups(schema: "pa.Schema", blocks: Iterable["pa.Table"]) -> Iterator["pa.Table"]:
    """Yield the rows in tables of GROUP_ROWS, the last one shorter; one empty table if there are no rows."""
    import pyarrow as pa

    waiting: list[pa.Table] = []  # rows of the next group
    count = rows = 0
    for block in blocks:
        block = block.replace_schema_metadata(schema.metadata)
        while len(block):
            part = block.slice(0, GROUP_ROWS - count)
            waiting.append(part)
            count += len(part)
            rows += len(part)
            block = block.slice(len(part))
            if count == GROUP_ROWS:
                yield pa.concat_tables(waiting)
                waiting = []
                count = 0
    if waiting or not rows:
        yield pa.concat_tables(waiting) if waiting else schema.empty_table()


def _in_pieces(group: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    starts = range(0, max(len(group), 1), PIECE_ROWS)
    return pa.concat_tables([group.slice(start, PIECE_ROWS).combine_chunks() for start in starts])


# ------------------------------------------------------------------------------------------------ safetensors


def write_matrix(path: Path, name: str, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    """Write one float32 matrix as safetensors, its rows in blocks; the bytes are those of `safetensors.numpy.save`.

    Raises:
        UserError: the file cannot be written; an earlier version is unchanged.
        ValueError: the blocks do not have the rows of `shape`.
    """
    size = 4 * shape[0] * shape[1]
    with writing(path) as file:
        file.write(_header({name: ("F32", shape)}))
        for block in blocks:
            if block.shape[1:] != shape[1:]:
                raise ValueError(f"a block of shape {block.shape} is not part of a matrix {shape}")
            size -= file.write(np.ascontiguousarray(block, "<f4").data.cast("B")) if block.size else 0
        if size:
            raise ValueError(f"{size} bytes are missing of a matrix {shape}")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of `TYPES` as safetensors, without a copy; the bytes are those of `safetensors.numpy.save`.

    Raises:
        UserError: the file cannot be written; an earlier version is unchanged.
        KeyError: an array is of another type.
    """
    names = {np.dtype(code): kind for kind, code in TYPES.items()}
    kinds = {name: names[array.dtype] for name, array in arrays.items()}
    order = sorted(arrays, key=lambda name: (list(TYPES).index(kinds[name]), name))
    with writing(path) as file:
        file.write(_header({name: (kinds[name], arrays[name].shape) for name in order}))
        for name in order:
            if arrays[name].size:
                file.write(np.ascontiguousarray(arrays[name]).data.cast("B"))


def _header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Return the beginning of a safetensors file that holds tensors of these types and shapes, in this order."""
    entries, end = {}, 0
    for name, (kind, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * np.dtype(TYPES[kind]).itemsize
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % HEADER_ALIGNMENT)
    return struct.pack("<Q", len(header)) + header


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a safetensors file into memory, read-only.

    Raises:
        ValueError: the file is damaged.
        TypeError: an array is of a type that is not one of `TYPES`.
    """
    entries, begin = _entries(path)
    if wrong := [(name, entry["dtype"]) for name, entry in entries.items() if entry["dtype"] not in TYPES]:
        raise TypeError(f"its tensor {wrong[0][0]} is of type {wrong[0][1]}, not {', '.join(TYPES)}")
    return {name: _mapped(path, entry, begin) for name, entry in entries.items()}


def map_matrix(path: Path, name: str) -> np.ndarray | None:
    """Return a float32 tensor of a safetensors file as a read-only array that is mapped into memory; None without it.

    Raises:
        ValueError: the file is damaged.
        TypeError: the tensor is of another type.
    """
    entries, begin = _entries(path)
    if name not in entries:
        return None
    if entries[name]["dtype"] != "F32":
        raise TypeError(f"its tensor {name} is of type {entries[name]['dtype']}, not F32")
    return _mapped(path, entries[name], begin)


def _entries(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return what the header of a safetensors file says of each tensor, and the number of bytes before the tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # which checks the header and the file's length
            pass
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entries: dict[str, dict[str, Any]] = json.loads(stream.read(length))
    entries.pop("__metadata__", None)
    return entries, 8 + length


def _mapped(path: Path, entry: Mapping[str, Any], begin: int) -> np.ndarray:
    """Map one tensor of a file whose tensors begin at this byte."""
    shape, code = tuple(entry["shape"]), TYPES[entry["dtype"]]
    if not math.prod(shape):
        return np.zeros(shape, code)
    return np.memmap(path, code, "r", begin + entry["data_offsets"][0], shape)
