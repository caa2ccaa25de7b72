"""Residual k-means (RK-means): k-means on the vectors, then on what the centroids leave over, level by level.

Source: GRID (arXiv 2507.22224), section 3, which also normalises the residuals; the k-means is faiss's, on the CPU.

Shape legend: I items, L code levels, C codes of a level, d embedding width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.quantize.quantizer import Quantized, unit_rows

ROUNDING = 1e-6  # a residual shorter than this, relative to the longest row, is float32 rounding


@dataclass(frozen=True)
class RKMeans:
    """See `QuantizeConfig` for the fields."""

    levels: int
    codes: int
    normalize_residuals: bool
    iterations: int
    restarts: int
    seed: int

    def fit(self, vectors_Id: np.ndarray) -> Quantized:
        """Codes, codebooks `level_1`.. float32 [C, d] and errors of all items.

        With normalised residuals the codebooks of levels 2.. are in units of the residual's own length, so the errors
        are those of a decoder that knows these lengths.

        Raises:
            UserError: more codes than items, or faiss is not installed.
        """
        if self.codes > len(vectors_Id):
            raise UserError(f"quantize.codes is {self.codes}, but there are only {len(vectors_Id)} items",
                            "a level cannot hold more codes than items",
                            f"set quantize.codes to about the square root of items: {round(len(vectors_Id) ** 0.5)}")
        rows_Id = vectors_Id.astype(np.float32)
        scales_I = np.ones(len(vectors_Id))
        codes, codebooks = [], {}
        for level in range(self.levels):
            if level and self.normalize_residuals:
                rows_Id, lengths_I = unit_rows(rows_Id)
                scales_I *= lengths_I
            centroids_Cd, codes_I = self._best_of_restarts(rows_Id, level)
            rows_Id = _residuals(rows_Id, centroids_Cd[codes_I])
            codes.append(codes_I)
            codebooks[f"level_{level + 1}"] = centroids_Cd
        errors_I = scales_I * np.linalg.norm(rows_Id.astype(np.float64), axis=1)
        return Quantized(np.stack(codes, axis=1).astype(np.int32), codebooks, errors_I)

    def _best_of_restarts(self, rows_Id: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        """(centroids [C, d], code of each row [I]) with the least squared error; of equal ones the first.

        Not faiss's own `nredo`: the sum by which that compares depends on the number of threads.
        """
        results, errors = [], []
        for restart in range(self.restarts):
            seed = int(np.random.default_rng([self.seed, level, restart]).integers(2**31 - 1))
            centroids_Cd, codes_I = kmeans(rows_Id, self.codes, self.iterations, seed)
            results.append((centroids_Cd, codes_I))
            errors.append(np.square(rows_Id - centroids_Cd[codes_I], dtype=np.float64).sum())
        return results[int(np.argmin(errors))]


def kmeans(rows_Id: np.ndarray, codes: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(centroids float32 [C, d], nearest centroid of each row, int64 [I]), learned from all rows that are not zero.

    A row of zeros (an item without text, or one that equals its centroid of the level before) is assigned but not
    learned from: drawn as a first centroid it is nearer to all others than they are to each other, takes them all, and
    Lloyd's passes never recover. Seen on Amazon Beauty: 23% of items in a collision rather than 18%. faiss refills an
    empty cluster by splitting the largest.
    """
    faiss = _faiss()
    learned_Jd = np.ascontiguousarray(rows_Id[np.any(rows_Id != 0, axis=1)])
    if len(learned_Jd) <= codes:  # each has a code of its own, and the codes left over are zeros
        centroids_Cd = np.zeros((codes, rows_Id.shape[1]), dtype=np.float32)
        centroids_Cd[:len(learned_Jd)] = learned_Jd
    else:
        # Without these limits faiss would learn from a sample, and warn when there are few rows.
        machine = faiss.Kmeans(rows_Id.shape[1], codes, niter=iterations, seed=seed,
                               min_points_per_centroid=1, max_points_per_centroid=len(learned_Jd))
        machine.train(learned_Jd)
        centroids_Cd = machine.centroids
    index = faiss.IndexFlatL2(rows_Id.shape[1])
    index.add(centroids_Cd)
    return centroids_Cd, index.search(np.ascontiguousarray(rows_Id), 1)[1][:, 0]


def _residuals(rows_Id: np.ndarray, nearest_Id: np.ndarray) -> np.ndarray:
    """What the centroids leave over; what is only rounding becomes zero, as normalised it would be a direction."""
    residuals_Id = rows_Id - nearest_Id
    noise_I = np.linalg.norm(residuals_Id, axis=1) <= ROUNDING * np.linalg.norm(rows_Id, axis=1).max()
    residuals_Id[noise_I] = 0
    return residuals_Id


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("faiss is not installed", "quantize.method rkmeans runs its k-means",
                        "pip install 'sidpipe[cpu]' (or 'sidpipe[gpu]' where CUDA 12 libraries are wanted)") from None
    return faiss
