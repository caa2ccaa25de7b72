"""Work that is kept shard by shard, so that a killed run goes on where it stopped.

A shard is a safetensors file in the scratch folder, written whole or not at all. The folder's name is a fingerprint of
all that decides the vectors, so that shards of other settings or other texts are never taken.
"""

import shutil
from pathlib import Path

import numpy as np

from pipeline.artifacts import read_tensors, write_tensors
from pipeline.errors import UserError


class Shards:
    """Vectors of a list of rows, in shards of `size` rows."""

    def __init__(self, scratch: Path, fingerprint: str, rows: int, size: int):
        self.folder = scratch / "embed" / fingerprint[:16]
        self.spans = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]

    def read(self, shard: int) -> np.ndarray | None:
        """float32 [rows of the shard, d], or None where it is not there or damaged."""
        path = self._path(shard)
        if not path.exists():
            return None
        try:
            return read_tensors(path)["vectors"]
        except UserError:
            print(f"embed: {path} is damaged and is made again")
            return None

    def write(self, shard: int, vectors: np.ndarray) -> None:
        write_tensors(self._path(shard), {"vectors": vectors})

    def remove(self) -> None:
        """Once the result is written they are of no more use."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"
