"""Measure whether Semantic IDs hold together nearest neighbours and items of one category.

Shape legend: I items, S sampled items, L levels, P items of a chunk, d width of the embeddings.
"""

import numpy as np

from pipeline.quantize.collisions import refined
from pipeline.quantize.rows import Vectors

SAMPLE = 1000  # items whose nearest neighbour is searched
CHUNK = 2**13  # items that are compared with the sample at once


def neighbour_agreement(vectors_Id: Vectors, codes_IL: np.ndarray) -> list[float]:
    """Return, per level, the share of items whose nearest neighbour (Euclidean) has the same codes up to that level.

    The share is measured on `SAMPLE` items, which depend on nothing but the number of items.
    """
    items = len(vectors_Id)
    sample_S = np.sort(np.random.default_rng(0).permutation(items)[:SAMPLE])
    neighbour_S = nearest_others(vectors_Id, sample_S)
    same_SL = codes_IL[sample_S] == codes_IL[neighbour_S]
    return [float(share) for share in np.logical_and.accumulate(same_SL, axis=1).mean(axis=0)]


def nearest_others(vectors_Id: Vectors, sample_S: np.ndarray) -> np.ndarray:
    """Return the item nearest to each of the sample but itself, int64 [S]; of equally near items the first."""
    sample_Sd = 2 * np.asarray(vectors_Id[sample_S])
    best_S = np.full(len(sample_S), -np.inf)
    nearest_S = np.zeros(len(sample_S), np.int64)
    for first in range(0, len(vectors_Id), CHUNK):
        # The closeness 2 s.v - |v|^2 orders items as -|s - v|^2 does: |s|^2 is the same for all items v of a row.
        part_Pd = np.asarray(vectors_Id[first : first + CHUNK])
        closeness_SP = sample_Sd @ part_Pd.T
        closeness_SP -= np.square(part_Pd).sum(axis=1)

        # An item is not its own neighbour: sample item 5 is column 1 of the chunk that begins with item 4.
        in_part_S = (sample_S >= first) & (sample_S < first + len(part_Pd))
        closeness_SP[in_part_S, sample_S[in_part_S] - first] = -np.inf

        column_S = closeness_SP.argmax(axis=1)
        closest_S = closeness_SP.max(axis=1)
        better_S = closest_S > best_S
        best_S[better_S] = closest_S[better_S]
        nearest_S[better_S] = column_S[better_S] + first
    return nearest_S


def category_agreement(codes_IL: np.ndarray, categories_I: np.ndarray) -> tuple[list[float | None], float | None]:
    """Compute how often two items are of one category, among those with the same codes up to a level, and among all.

    Args:
        categories_I: int [I]; an item without a category has -1 and is left out.

    Returns:
        (share of pairs per level, share of all pairs: by chance); None if there is no pair.
    """
    known = categories_I >= 0
    codes_IL = codes_IL[known]
    categories_I = categories_I[known]
    prefix_I = np.zeros(len(codes_IL), np.int64)
    by_chance = _agreement(prefix_I, categories_I)
    levels = []
    for codes_I in codes_IL.T:
        prefix_I = refined(prefix_I, codes_I)
        levels.append(_agreement(prefix_I, categories_I))
    return levels, by_chance


def _agreement(prefix_I: np.ndarray, categories_I: np.ndarray) -> float | None:
    """Divide the number of pairs that agree in prefix and category by the number that agree in the prefix."""
    # prefix_I 0 0 0 1, categories_I 7 7 8 8: one pair of 3 with prefix 0 agrees in the category too -> 1/3
    prefixes = _pairs(np.bincount(prefix_I))
    both = np.bincount(refined(prefix_I, categories_I))
    return float(_pairs(both) / prefixes) if prefixes else None


def _pairs(counts: np.ndarray) -> int:
    """Count the ordered pairs within groups of these sizes."""
    return int((counts * (counts - 1)).sum())
