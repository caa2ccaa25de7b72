"""Write Parquet and safetensors in blocks, and map safetensors into memory, so that no file has to fit into memory.

Equal content gives equal bytes, however it is divided into blocks: a row group has 1,000,000 rows, and is handed to
Arrow in pieces of 100,000 rows, because a page ends where a piece ends. Arrow ends a page of numbers after 20,000 rows
in any case, so that a row group of numbers has the same bytes in pieces as it has at once.
"""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.manifest import writing

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS = 1_000_000
PIECE_ROWS = 100_000
HEADER_ALIGNMENT = 8  # of the header of safetensors, in bytes


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
    tensor = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}
    header = json.dumps({name: tensor}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % HEADER_ALIGNMENT)
    with writing(path) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for block in blocks:
            if block.shape[1:] != shape[1:]:
                raise ValueError(f"a block of shape {block.shape} is not part of a matrix {shape}")
            size -= file.write(np.ascontiguousarray(block, "<f4").data.cast("B")) if block.size else 0
        if size:
            raise ValueError(f"{size} bytes are missing of a matrix {shape}")


def map_matrix(path: Path, name: str) -> np.ndarray | None:
    """Return a float32 tensor of a safetensors file as a read-only array that is mapped into memory; None without it.

    Raises:
        ValueError: the file is damaged.
        TypeError: the tensor is of another type.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:  # which checks the header and the file's length
            if name not in file.keys():  # noqa: SIM118 (not a dict)
                return None
            kind = file.get_slice(name).get_dtype()
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if kind != "F32":
        raise TypeError(f"its tensor {name} is of type {kind}, not F32")
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entry = json.loads(stream.read(length))[name]
    shape = tuple(entry["shape"])
    if not np.prod(shape):
        return np.zeros(shape, np.float32)
    return np.memmap(path, "<f4", "r", 8 + length + entry["data_offsets"][0], shape)
