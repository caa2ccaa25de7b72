"""Whether Semantic IDs keep together what belongs together: nearest neighbours, and items of one category.

Shape legend: I items, S sampled items, L code levels, P prefixes, K categories, d embedding width.
"""

import numpy as np

from pipeline.quantize.collisions import group_by_codes

SAMPLE = 1000  # items whose nearest neighbour is looked for
CHUNK = 2**15  # items that they are held against at once


def neighbour_agreement(vectors_Id: np.ndarray, codes_IL: np.ndarray) -> list[float]:
    """Per level: share of items whose nearest neighbour (Euclidean) has the same codes up to that level.

    Measured on `SAMPLE` items, always the same ones for the same number of items.
    """
    items = len(vectors_Id)
    sample_S = np.sort(np.random.default_rng(0).permutation(items)[:SAMPLE])
    neighbour_S = nearest_others(vectors_Id, sample_S)
    same_SL = codes_IL[sample_S] == codes_IL[neighbour_S]
    return [float(share) for share in np.logical_and.accumulate(same_SL, axis=1).mean(axis=0)]


def nearest_others(vectors_Id: np.ndarray, sample_S: np.ndarray) -> np.ndarray:
    """int64 [S]: the item nearest to each of the sample, itself left out; of equally near ones the first."""
    best_S, nearest_S = np.full(len(sample_S), -np.inf), np.zeros(len(sample_S), np.int64)
    for first in range(0, len(vectors_Id), CHUNK):
        part = vectors_Id[first : first + CHUNK]
        closeness = 2 * vectors_Id[sample_S] @ part.T - np.square(part).sum(axis=1)
        in_part = (sample_S >= first) & (sample_S < first + len(part))
        closeness[in_part, sample_S[in_part] - first] = -np.inf
        nearest, best = closeness.argmax(axis=1), closeness.max(axis=1)
        better = best > best_S
        best_S[better], nearest_S[better] = best[better], nearest[better] + first
    return nearest_S


def category_agreement(codes_IL: np.ndarray, categories_I: np.ndarray) -> tuple[list[float | None], float | None]:
    """Share of the pairs of items with the same codes up to a level that are of one category, and that of all pairs.

    Args:
        categories_I: int [I], -1 where an item has none: it is left out.

    Returns:
        (per level, by chance); None where there is no pair.
    """
    known = categories_I >= 0
    codes_IL, categories_I = codes_IL[known], categories_I[known]
    everything = np.zeros(len(codes_IL), np.int64)
    levels = [
        _agreement(group_by_codes(codes_IL[:, : level + 1])[0], categories_I) for level in range(codes_IL.shape[1])
    ]
    return levels, _agreement(everything, categories_I)


def _agreement(prefix_I: np.ndarray, categories_I: np.ndarray) -> float | None:
    """Pairs that agree in both, over pairs that agree in the prefix."""
    prefixes = _pairs(np.bincount(prefix_I))
    _, both = np.unique(np.stack([prefix_I, categories_I]), axis=1, return_counts=True)
    return float(_pairs(both) / prefixes) if prefixes else None


def _pairs(counts: np.ndarray) -> int:
    return int((counts * (counts - 1)).sum())
