"""Residual k-means (RK-means): k-means on the vectors, then on what the centroids leave over, level by level.

Source: GRID (arXiv 2507.22224), section 3, which also normalises the residuals; the k-means is faiss's, on a GPU where
faiss-gpu is installed.

Shape legend: I items, L code levels, C codes of a level, J rows that are learned from, d embedding width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.quantize.quantizer import Quantized, require_items
from pipeline.quantize.residual import fit_residuals


@dataclass(frozen=True)
class RKMeans:
    """See `QuantizeConfig` for the fields."""

    levels: int
    codes: int
    normalize_residuals: bool
    iterations: int
    restarts: int
    seed: int
    device: str = "cpu"

    def fit(self, vectors_Id: np.ndarray) -> Quantized:
        """As `fit_residuals`.

        Raises:
            UserError: more codes than items, faiss is not installed, or a GPU is asked for that faiss cannot use.
        """
        require_items(self.codes, len(vectors_Id))
        return fit_residuals(vectors_Id, self.levels, self.normalize_residuals, self._best_of_restarts)

    def _best_of_restarts(self, rows_Id: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        """(centroids [C, d], code of each row [I]) with the least squared error; of equal ones the first.

        Not faiss's own `nredo`: the sum by which that compares depends on the number of threads.
        """
        results, errors = [], []
        for restart in range(self.restarts):
            seed = int(np.random.default_rng([self.seed, level, restart]).integers(2**31 - 1))
            centroids_Cd, codes_I = kmeans(rows_Id, self.codes, self.iterations, seed, self.device)
            results.append((centroids_Cd, codes_I))
            errors.append(np.square(rows_Id - centroids_Cd[codes_I], dtype=np.float64).sum())
        return results[int(np.argmin(errors))]


def kmeans(
    rows_Id: np.ndarray, codes: int, iterations: int, seed: int, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """(centroids float32 [C, d], nearest centroid of each row, int64 [I]), learned from all rows that are not zero.

    A row of zeros (an item without text, or one that equals its centroid of the level before) is assigned but not
    learned from: drawn as a first centroid it is nearer to all others than they are to each other, takes them all, and
    Lloyd's passes never recover. Seen on Amazon Beauty: 23% of items in a collision rather than 18%. faiss refills an
    empty cluster by splitting the largest.
    """
    faiss = _faiss()
    on_gpu = _on_gpu(faiss, device)
    learned_Jd = np.ascontiguousarray(rows_Id[np.any(rows_Id != 0, axis=1)])
    if len(learned_Jd) <= codes:  # each has a code of its own, and the codes left over are zeros
        centroids_Cd = np.zeros((codes, rows_Id.shape[1]), dtype=np.float32)
        centroids_Cd[: len(learned_Jd)] = learned_Jd
    else:
        # Without these limits faiss would learn from a sample, and warn when there are few rows.
        machine = faiss.Kmeans(
            rows_Id.shape[1],
            codes,
            niter=iterations,
            seed=seed,
            gpu=on_gpu,
            min_points_per_centroid=1,
            max_points_per_centroid=len(learned_Jd),
        )
        machine.train(learned_Jd)
        centroids_Cd = machine.centroids
    # The last assignment runs on the CPU, also after a GPU: exact, and ties fall to the lower code on every machine.
    index = faiss.IndexFlatL2(rows_Id.shape[1])
    index.add(centroids_Cd)
    return centroids_Cd, index.search(np.ascontiguousarray(rows_Id), 1)[1][:, 0]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError(
            "faiss is not installed",
            "the k-means of quantize.method rkmeans, rqvae and vqvae is faiss's",
            "pip install 'sidpipe[cpu]' (or 'sidpipe[gpu]' where CUDA 12 libraries are wanted)",
        ) from None
    return faiss


def _on_gpu(faiss: Any, device: str) -> bool:
    """Whether k-means runs on a GPU: `auto` takes one where this faiss can."""
    usable = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if device == "cuda" and not usable:
        raise UserError(
            "quantize.device is cuda, but faiss has no GPU",
            f"faiss {faiss.__version__} is built for the CPU, or sees no GPU",
            "set quantize.device to auto, or: pip uninstall faiss-cpu && pip install 'sidpipe[gpu]'",
        )
    return usable and device != "cpu"
