"""Vectors that are read, scaled and left over block by block, so that no copy of all of them is ever held.

The vectors of a large catalogue lie in a file that is mapped into memory. `UnitVectors` scales them and `LevelRows`
computes what the levels so far leave of them, both when rows are read. All arithmetic is row by row, so the numbers do
not depend on the blocks.

Shape legend: I items, P items of a block, V codes of a level, d width of the vectors.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

BLOCK = 2**21  # numbers of a block, about
QUERIES = 4096  # faiss searches so many rows at once: blocks of a multiple of them give what one call gives
ROUNDING = 1e-6  # a residual shorter than this, relative to the longest row, is float32 rounding

Index = slice | np.ndarray


def blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut rows [I, d] into consecutive blocks of a multiple of QUERIES; fewer than these at the end join the last."""
    items, width = shape[0], max(shape[1], 1)
    size = max(1, BLOCK // (QUERIES * width)) * QUERIES
    first = 0
    while items - first >= size + QUERIES:
        yield slice(first, first + size)
        first += size
    yield slice(first, items)


def unit_rows(rows_Id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows scaled to the Euclidean length 1, their lengths before [I]); a row of zeros stays zeros."""
    lengths_I = np.linalg.norm(rows_Id, axis=1)
    return rows_Id / np.where(lengths_I > 0, lengths_I, 1)[:, None], lengths_I


class Lazy:
    """Rows [I, d] that are computed when they are read, as a slice or by their numbers."""

    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Index) -> np.ndarray:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Compute all rows, for a method that needs them at once; float32."""
        everything_Id = np.empty(self.shape, np.float32)
        for block in blocks(self.shape):
            everything_Id[block] = self[block]
        return everything_Id if dtype is None else everything_Id.astype(dtype, copy=False)


Vectors = np.ndarray | Lazy


class UnitVectors(Lazy):
    """Vectors scaled to the Euclidean length 1; a vector of zeros stays zeros."""

    def __init__(self, vectors_Id: Vectors):
        self.vectors_Id = vectors_Id
        self.shape = vectors_Id.shape

    def __getitem__(self, rows: Index) -> np.ndarray:
        return unit_rows(np.asarray(self.vectors_Id[rows]))[0]


class LevelRows(Lazy):
    """The rows that the next level quantizes: what the levels so far leave of the vectors, float32.

    With normalised residuals, each is scaled to the length 1 before a level after the first quantizes it.
    """

    def __init__(self, vectors_Id: Vectors, normalize: bool):
        self.vectors_Id = vectors_Id
        self.shape = vectors_Id.shape
        self.normalize = normalize
        self._left: list[tuple[np.ndarray, np.ndarray, np.float32]] = []  # codebook, codes and limit of each level
        self._survey: tuple[np.ndarray, np.float32] | None = None

    def __getitem__(self, rows: Index) -> np.ndarray:
        return self.scaled(rows)[0]

    def scaled(self, rows: Index) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows [P, d], the factors [P], float64, that bring them back to the units of the vectors)."""
        # A vector (3, 4) with the nearest centroid (3, 3) leaves (0, 1) to the next level.
        rows_Pd = np.asarray(self.vectors_Id[rows]).astype(np.float32)
        scales_P = np.ones(len(rows_Pd))
        for codebook_Vd, codes_I, limit in self._left:
            rows_Pd = residuals(rows_Pd, codebook_Vd[codes_I[rows]], limit)
            if self.normalize:
                rows_Pd, lengths_P = unit_rows(rows_Pd)
                scales_P *= lengths_P
        return rows_Pd, scales_P

    def survey(self) -> tuple[np.ndarray, np.float32]:
        """Return (whether each row is other than zero, bool [I]; the length below which a residual is rounding)."""
        if self._survey is None:
            present_I = np.empty(len(self), bool)
            longest = np.float32(0)
            for block in blocks(self.shape):
                rows_Pd = self[block]
                present_I[block] = np.any(rows_Pd != 0, axis=1)
                longest = max(longest, np.linalg.norm(rows_Pd, axis=1).max())
            self._survey = present_I, np.float32(ROUNDING * longest)
        return self._survey

    def after(self, codebook_Vd: np.ndarray, codes_I: np.ndarray) -> "LevelRows":
        """Return the rows of the level after the one that gave the items these codes."""
        rows = LevelRows(self.vectors_Id, self.normalize)
        rows._left = [*self._left, (codebook_Vd, codes_I, self.survey()[1])]
        return rows

    def errors(self, codebook_Vd: np.ndarray, codes_I: np.ndarray) -> np.ndarray:
        """Return the length of what this level leaves of each vector, in the vectors' units; float64 [I]."""
        errors_I = np.empty(len(self))
        for block in blocks(self.shape):
            rows_Pd, scales_P = self.scaled(block)
            left_Pd = residuals(rows_Pd, codebook_Vd[codes_I[block]], self.survey()[1])
            errors_I[block] = scales_P * np.linalg.norm(left_Pd.astype(np.float64), axis=1)
        return errors_I


def residuals(rows_Pd: np.ndarray, nearest_Pd: np.ndarray, limit: np.float32) -> np.ndarray:
    """Subtract the centroids. A residual that is only rounding becomes zero: normalised, it would be a direction."""
    residuals_Pd: np.ndarray = rows_Pd - nearest_Pd
    residuals_Pd[np.linalg.norm(residuals_Pd, axis=1) <= limit] = 0
    return residuals_Pd
