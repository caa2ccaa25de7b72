"""Item vectors that come with a dataset: `*_embeddings.npy` beside the item file, row by row in its order."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.ingest.staging import StagedItems

CHUNK_ITEMS = 100_000  # an Arrow list column counts its values in 32 bits


def read_vectors(path: Path, items: StagedItems | None) -> np.ndarray:
    """Float vectors [rows of the item file, width], memory-mapped.

    Raises:
        UserError: there is no item file, the counts differ, or the file is no matrix of floats.
    """
    if items is None:
        raise UserError(
            f"{path.name} has no item file beside it",
            "its rows follow the order of items.*",
            "add the item file, or move the vectors away",
        )
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path.name} cannot be read: {error}",
            "the file is damaged or holds Python objects",
            "save a float array with numpy.save",
        ) from None
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise UserError(
            f"{path.name} holds {vectors.dtype} {list(vectors.shape)}",
            "one float vector per item is needed",
            "save an array [items, width] of floats",
        )
    if len(vectors) != items.read:
        raise UserError(
            f"{path.name} has {len(vectors):,} rows, {items.source} has {items.read:,}",
            "row by row they must be the same items",
            "make the vectors again from this item file",
        )
    return vectors


def vector_column(vectors: np.ndarray, rows: np.ndarray) -> pa.ChunkedArray:
    """list<float32> column of the vectors at `rows`."""
    chunks = []
    for start in range(0, len(rows), CHUNK_ITEMS):
        part = np.asarray(vectors[rows[start : start + CHUNK_ITEMS]], np.float32)
        offsets = np.arange(len(part) + 1, dtype=np.int32) * part.shape[1]
        chunks.append(pa.ListArray.from_arrays(offsets, part.ravel()))
    return pa.chunked_array(chunks)
