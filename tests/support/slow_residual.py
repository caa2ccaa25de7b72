"""Vectors to quantize, and residual quantization by hand in float64."""

from typing import Any

import numpy as np

from pipeline.quantize.quantizer import Quantized
from pipeline.quantize.rkmeans import RKMeans


def rkmeans(**changes: Any) -> RKMeans:
    return RKMeans(
        **{"levels": 3, "codes": 16, "normalize_residuals": True, "iterations": 20, "restarts": 1, "seed": 5, **changes}
    )


def clouds(seed: int, items: int = 300, width: int = 8, centers: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (
        3 * rng.normal(size=(centers, width))[rng.integers(0, centers, items)] + rng.normal(size=(items, width))
    ).astype(np.float32)


def follow(vector: np.ndarray, codes: list[int], quantized: Quantized, normalize: bool) -> tuple[np.ndarray, float]:
    """(the vector that the codes stand for, how much farther than the nearest centroid a code was at most), by hand."""
    residual, scale, rebuilt, excess = vector.astype(np.float64), 1.0, np.zeros(len(vector)), 0.0
    levels = [quantized.codebooks[f"level_{level + 1}"] for level in range(len(codes))]
    for level, (code, centroids) in enumerate(zip(codes, levels, strict=True)):
        if level and normalize and (length := np.sqrt((residual**2).sum())) > 1e-5:
            residual, scale = residual / length, scale * length
        distances = [np.sqrt(((residual - centroid) ** 2).sum()) for centroid in centroids]
        excess = max(excess, distances[code] - min(distances))
        rebuilt += scale * centroids[code]
        residual = residual - centroids[code]
    return rebuilt, excess
