"""Read the item vectors that come with a dataset: `*_embeddings.npy` beside the item file, in the order of its rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.ingest.item_file import StagedItems
from pipeline.printing import shown

CHUNK_ITEMS = 100_000  # an Arrow list column counts its values in 32 bits


def read_vectors(path: Path, items: StagedItems | None) -> np.ndarray:
    """Return float vectors [rows of the item file, width], memory-mapped.

    Raises:
        UserError: there is no item file, the counts differ, or the file is no matrix of floats.
    """
    if items is None:
        raise UserError(
            f"{path.name} has no item file beside it",
            "row i of the vectors belongs to row i of the item file, items.*",
            "add the item file, or move the vectors away",
        )
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path.name} cannot be read: {shown(error)}",
            "the file is damaged, or it holds Python objects",
            "save a float array with numpy.save",
        ) from None
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise UserError(
            f"{path.name} holds an array of {vectors.dtype} {list(vectors.shape)}",
            "the array must be floats of shape [items, width]",
            "save the vectors as such an array",
        )
    if len(vectors) != items.read:
        raise UserError(
            f"{path.name} has {len(vectors):,} rows, {items.source} has {items.read:,}",
            "row i of both must be the same item",
            "make the vectors again from this item file",
        )
    rows: np.ndarray = vectors
    return rows


def vector_column(vectors: np.ndarray, rows: np.ndarray) -> pa.ChunkedArray:
    """Return the vectors at `rows` as a column of type list<float32>; null for a row that the vectors do not have.

    Such a row is an item that the item file does not list.
    """
    chunks = []
    for start in range(0, len(rows), CHUNK_ITEMS):
        there = rows[start : start + CHUNK_ITEMS] < len(vectors)
        part = np.asarray(vectors[rows[start : start + CHUNK_ITEMS][there]], np.float32)
        offsets = np.concatenate([[0], np.cumsum(there)]).astype(np.int32) * np.int32(part.shape[1])
        missing = None if there.all() else pa.array(~there)
        chunks.append(pa.ListArray.from_arrays(offsets, part.ravel(), mask=missing))
    return pa.chunked_array(chunks)
