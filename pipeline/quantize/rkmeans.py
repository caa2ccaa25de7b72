"""Residual k-means (RK-means): k-means on the vectors, then on the residuals of each level before, level by level.

Source: GRID (arXiv 2507.22224), section 3, which also normalises the residuals; the k-means is faiss's, on a GPU if
faiss-gpu is installed.

Shape legend: I items, V codes of a level, J rows that are learned from, d width of the embeddings.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.quantize.quantizer import Quantized, require_items
from pipeline.quantize.residual import fit_residuals


@dataclass(frozen=True, kw_only=True)
class RKMeans:
    """The quantizer of `quantize.method: rkmeans`; `QuantizeConfig` explains the fields."""

    levels: int
    codes: int
    normalize_residuals: bool
    iterations: int
    restarts: int
    seed: int
    device: str = "cpu"

    def fit(self, vectors_Id: np.ndarray) -> Quantized:
        """Quantize all items by `fit_residuals`.

        Raises:
            UserError: there are more codes than items, faiss is not installed, or faiss cannot use the GPU that
                `quantize.device` asks for.
        """
        require_items(self.codes, len(vectors_Id))
        return fit_residuals(vectors_Id, self.levels, self.normalize_residuals, self._best_of_restarts)

    def _best_of_restarts(self, rows_Id: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (centroids [V, d], code of each row [I]) of the run with the least squared error, the first if equal.

        faiss's `nredo` would not do: the sum by which it compares runs depends on the number of threads.
        """
        results = []
        errors = []
        for restart in range(self.restarts):
            # Each level and each restart has its own seed, drawn from (seed, level, restart).
            seed = int(np.random.default_rng([self.seed, level, restart]).integers(2**31 - 1))
            centroids_Vd, codes_I = kmeans(rows_Id, self.codes, self.iterations, seed, self.device)
            results.append((centroids_Vd, codes_I))

            # The sum is NumPy's in float64, so that it does not depend on the number of threads.
            errors.append(np.square(rows_Id - centroids_Vd[codes_I], dtype=np.float64).sum())
        return results[int(np.argmin(errors))]


def kmeans(
    rows_Id: np.ndarray, codes: int, iterations: int, seed: int, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Run k-means (Lloyd's algorithm) on all rows that are not zero.

    A row of zeros (an item without text, or one that equals its centroid of the level before) gets a code but is not
    learned from. As a first centroid it would be nearer to all rows than they are to each other and get all of them,
    from which Lloyd's iterations never recover. On Amazon Beauty 23% of items were then in a collision rather than 18%.
    faiss refills an empty cluster by splitting the largest.

    Args:
        rows_Id: float32 [I, d].
        codes: number of centroids.
        iterations: Lloyd's iterations.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        (centroids float32 [V, d], nearest centroid of each row, int64 [I])

    Raises:
        UserError: faiss is not installed, or cannot use the GPU that `device` asks for.
    """
    faiss = _faiss()
    on_gpu = _on_gpu(faiss, device)

    # rows (0, 0), (1, 2), (0, 3) -> learned_Jd (1, 2), (0, 3)
    learned_Jd = np.ascontiguousarray(rows_Id[np.any(rows_Id != 0, axis=1)])
    if len(learned_Jd) <= codes:
        # Each of these rows is a centroid; the remaining centroids are zeros.
        centroids_Vd = np.zeros((codes, rows_Id.shape[1]), dtype=np.float32)
        centroids_Vd[: len(learned_Jd)] = learned_Jd
    else:
        # Without the two limits faiss would learn from a sample of the rows, and warn when there are few rows.
        clustering = faiss.Kmeans(
            rows_Id.shape[1],
            codes,
            niter=iterations,
            seed=seed,
            gpu=on_gpu,
            min_points_per_centroid=1,
            max_points_per_centroid=len(learned_Jd),
        )
        clustering.train(learned_Jd)
        centroids_Vd = clustering.centroids

    # The last assignment, of all rows, runs on the CPU even if the k-means ran on a GPU: it is exact, and of equally
    # near centroids the lower code wins on every machine.
    index = faiss.IndexFlatL2(rows_Id.shape[1])
    index.add(centroids_Vd)
    _, nearest_I1 = index.search(np.ascontiguousarray(rows_Id), 1)
    return centroids_Vd, nearest_I1[:, 0]


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise UserError(
            "faiss is not installed",
            "quantize.method rkmeans runs the k-means of faiss, and rqvae starts from it",
            "run `pip install -e '.[cpu]'`, or `pip install -e '.[gpu]'`, which brings CUDA 12 libraries",
        ) from None
    return faiss


def _on_gpu(faiss: Any, device: str) -> bool:
    """Tell whether k-means runs on a GPU: with `auto` it does if this faiss can use one."""
    usable = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if device == "cuda" and not usable:
        raise UserError(
            "quantize.device is cuda, but faiss has no GPU",
            f"faiss {faiss.__version__} is built for the CPU, or it sees no GPU",
            "set quantize.device to auto, or run `pip uninstall faiss-cpu && pip install -e '.[gpu]'`",
        )
    return usable and device != "cpu"
