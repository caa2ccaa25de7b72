"""Residual k-means (RK-means): k-means on the vectors, then on the residuals of each level before, level by level.

Source: GRID (arXiv 2507.22224), section 3, which also normalises the residuals; the k-means is faiss's, on a GPU if
faiss-gpu is installed. A level learns from all items, or from a sample of `points_per_code` items for each code, and
its codes are then assigned block by block; so the memory beside the vectors is that of the sample.

Shape legend: I items, V codes of a level, J rows that are learned from, d width of the embeddings.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.quantize.quantizer import Quantized, Sampled, require_items
from pipeline.quantize.residual import fit_residuals
from pipeline.quantize.rows import LevelRows, Vectors, blocks


@dataclass(frozen=True, kw_only=True)
class RKMeans:
    """The quantizer of `quantize.method: rkmeans`; `QuantizeConfig` explains the fields."""

    levels: int
    codes: int
    normalize_residuals: bool
    iterations: int
    restarts: int
    seed: int
    points_per_code: int = 0
    device: str = "cpu"

    def fit(self, vectors_Id: Vectors) -> Quantized:
        """Quantize all items by `fit_residuals`.

        Raises:
            UserError: there are more codes than items, faiss is not installed, or faiss cannot use the GPU that
                `quantize.device` asks for.
        """
        require_items(self.codes, len(vectors_Id))
        levels: list[Clustered] = []

        def learn(rows_Id: LevelRows, level: int) -> tuple[np.ndarray, np.ndarray]:
            levels.append(self._best_of_restarts(rows_Id, level))
            return levels[-1].centroids_Vd, levels[-1].codes_I

        quantized = fit_residuals(vectors_Id, self.levels, self.normalize_residuals, learn)
        return replace(quantized, sampled=tuple(level.sampled for level in levels if level.sampled))

    def _best_of_restarts(self, rows_Id: LevelRows, level: int) -> "Clustered":
        """Return the run with the least squared error, the first if equal.

        faiss's `nredo` would not do: the sum by which it compares runs depends on the number of threads.
        """
        best: Clustered | None = None
        least = np.inf
        for restart in range(self.restarts):
            # Each level and each restart has its own seed, drawn from (seed, level, restart).
            seed = int(np.random.default_rng([self.seed, level, restart]).integers(2**31 - 1))
            found = cluster(rows_Id, self.codes, self.iterations, seed, self.device, self.points_per_code)
            # The sum is NumPy's in float64, so that it does not depend on the number of threads.
            error = _squares(rows_Id, found) if self.restarts > 1 else 0.0
            if best is None or error < least:
                best, least = found, error
        assert best is not None
        return best


@dataclass(frozen=True, kw_only=True)
class Clustered:
    """`Clustered` holds what k-means found: centroids, float32, and the nearest centroid of each row, int32."""

    centroids_Vd: np.ndarray
    codes_I: np.ndarray
    sampled: Sampled | None  # None: it learned from all rows


def kmeans(
    rows_Id: np.ndarray, codes: int, iterations: int, seed: int, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Run `cluster` on all rows of an array.

    Returns:
        (centroids float32 [V, d], nearest centroid of each row, int64 [I])
    """
    found = cluster(LevelRows(rows_Id, normalize=False), codes, iterations, seed, device)
    return found.centroids_Vd, found.codes_I.astype(np.int64)


def cluster(
    rows_Id: LevelRows, codes: int, iterations: int, seed: int, device: str = "cpu", points_per_code: int = 0
) -> Clustered:
    """Run k-means (Lloyd's algorithm) on all rows that are not zero, or on a sample of them.

    A row of zeros (an item without text, or one that equals its centroid of the level before) gets a code but is not
    learned from. As a first centroid it would be nearer to all rows than they are to each other and get all of them,
    from which Lloyd's iterations never recover. On Amazon Beauty 23% of items were then in a collision rather than 18%.
    faiss refills an empty cluster by splitting the largest.

    Args:
        rows_Id: float32 [I, d].
        codes: number of centroids.
        iterations: Lloyd's iterations.
        seed: decides the first centroids and the sample.
        device: `cpu`, `cuda` or `auto`.
        points_per_code: rows of the sample for each centroid; 0: all rows.

    Raises:
        UserError: faiss is not installed, does not load, or cannot use the GPU that `device` asks for.
    """
    faiss = _faiss()
    on_gpu = _on_gpu(faiss, device)

    # rows (0, 0), (1, 2), (0, 3) -> learned_Jd (1, 2), (0, 3)
    present = np.flatnonzero(rows_Id.survey()[0])
    most = points_per_code * codes or len(present)
    drawn = present
    if most < len(present):
        drawn = present[np.sort(np.random.default_rng(seed).choice(len(present), most, replace=False, shuffle=False))]
    learned_Jd = _gathered(rows_Id, drawn)
    if len(learned_Jd) <= codes:
        # Each of these rows is a centroid; the remaining centroids are zeros.
        centroids_Vd = np.zeros((codes, rows_Id.shape[1]), dtype=np.float32)
        centroids_Vd[: len(learned_Jd)] = learned_Jd
    else:
        # Without the two limits faiss would learn from a sample of its own, and warn when there are few rows.
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
    del learned_Jd
    codes_I, squares_I = _nearest(faiss, rows_Id, centroids_Vd)
    sampled = None if len(drawn) == len(present) else _sampled(squares_I, present, drawn)
    return Clustered(centroids_Vd=centroids_Vd, codes_I=codes_I, sampled=sampled)


def _gathered(rows_Id: LevelRows, numbers_J: np.ndarray) -> np.ndarray:
    """Return the rows with these numbers, float32 [J, d]."""
    gathered_Jd = np.empty((len(numbers_J), rows_Id.shape[1]), np.float32)
    for block in blocks(gathered_Jd.shape):
        gathered_Jd[block] = rows_Id[numbers_J[block]]
    return gathered_Jd


def _nearest(faiss: Any, rows_Id: LevelRows, centroids_Vd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (the nearest centroid of each row, int32 [I]; their squared distance, float32 [I]).

    This runs on the CPU even if the k-means ran on a GPU: it is exact, and of equally near centroids the lower code
    wins on every machine.
    """
    index = faiss.IndexFlatL2(rows_Id.shape[1])
    index.add(centroids_Vd)
    codes_I = np.empty(len(rows_Id), np.int32)
    squares_I = np.empty(len(rows_Id), np.float32)
    for block in blocks(rows_Id.shape):
        squares_I1, nearest_I1 = index.search(np.ascontiguousarray(rows_Id[block]), 1)
        codes_I[block] = nearest_I1[:, 0]
        squares_I[block] = squares_I1[:, 0]
    return codes_I, squares_I


def _squares(rows_Id: LevelRows, found: Clustered) -> float:
    """Return the sum of squared distances of the rows to their centroids, in float64."""
    return sum(
        float(np.square(rows_Id[block] - found.centroids_Vd[found.codes_I[block]], dtype=np.float64).sum())
        for block in blocks(rows_Id.shape)
    )


def _sampled(squares_I: np.ndarray, present: np.ndarray, drawn: np.ndarray) -> Sampled:
    """Compare the error of the rows that were learned from with that of the others."""
    total = squares_I[present].sum(dtype=np.float64)
    of_sample = squares_I[drawn].sum(dtype=np.float64)
    rest = (total - of_sample) / (len(present) - len(drawn))
    excess = rest / (of_sample / len(drawn)) - 1 if of_sample else 0.0
    return Sampled(points=len(drawn), items=len(present), excess=round(float(excess), 4))


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise UserError(
            "faiss is not installed",
            "quantize.method rkmeans runs the k-means of faiss, and rqvae starts from it",
            "run `pip install -e '.[cpu]'`, or `pip install -e '.[gpu]'`, which brings CUDA 12 libraries",
        ) from None
    except (ImportError, RuntimeError, OSError) as error:  # faiss-gpu looks for CUDA's libraries while it is imported
        raise UserError(
            "faiss is installed, but does not load",
            (str(error) or type(error).__name__).splitlines()[0],
            "run `pip install -e '.[gpu]'`, which brings CUDA 12 libraries, or `pip uninstall faiss-gpu` and "
            "`pip install --force-reinstall faiss-cpu`",
        ) from error
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
