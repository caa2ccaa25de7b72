"""Measure how good the Semantic IDs are before a generator is trained on them, for quality.json and levels.csv.

Shape legend: I items, L levels, V codes of a level, G groups of items with equal codes, d width of the embeddings.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.quantize.collisions import group_by_codes, refined
from pipeline.quantize.neighbours import category_agreement, neighbour_agreement
from pipeline.quantize.quantizer import Quantized
from pipeline.quantize.rows import Vectors, blocks

LEVEL_COLUMNS = (
    "level",
    "used_codes",
    "perplexity",
    "entropy_bits",
    "gini",
    "prefixes",
    "neighbour_agreement",
    "category_agreement",
)


def quality_metrics(
    vectors_Id: Vectors, quantized: Quantized, codes: int, categories_I: np.ndarray | None = None
) -> dict[str, Any]:
    """Return quality numbers and one mapping of numbers per level, all about codes without the deduplication digit.

    collision_rate: share of items that share their codes with another item. identical_vectors: share of items with the
    same vector as another item, which no quantizer can tell apart. colliding_pairs: share of the pairs of the other
    items that have the same codes. relative_reconstruction_error: squared errors over squared lengths of the quantized
    vectors. category_agreement_by_chance: the agreement of all pairs, null without categories. Numbers of a level: see
    `code_usage`; prefixes: distinct codes up to the level; neighbour_agreement and category_agreement: see
    neighbours.py.

    Args:
        vectors_Id: float32 [I, d], as they were quantized.
        codes: codebook size of a level.
        categories_I: int [I], -1 for an item without a category; None: no item has a category.
    """
    codes_IL = quantized.codes_IL
    prefixes, sizes_G = _prefixes(codes_IL)
    same_I = _identical(vectors_Id)
    energy = sum(np.square(vectors_Id[block], dtype=np.float64).sum() for block in blocks(vectors_Id.shape))
    none = np.full(len(codes_IL), -1) if categories_I is None else categories_I
    in_category, by_chance = category_agreement(codes_IL, none)
    with_neighbour = neighbour_agreement(vectors_Id, codes_IL)
    return {
        "items": len(codes_IL),
        "unique_codes": len(sizes_G),
        "collision_rate": collision_rate(codes_IL),
        "largest_group": int(sizes_G.max()),
        "identical_vectors": round(int(same_I.sum()) / len(codes_IL), 6),
        "colliding_pairs": _colliding_pairs(codes_IL[~same_I]),
        "two_level_prefixes": prefixes[:2][-1],
        "relative_reconstruction_error": round(float(np.square(quantized.errors_I).sum() / energy), 6),
        "category_agreement_by_chance": _rounded(by_chance),
        **{
            f"level_{level + 1}": {
                **code_usage(np.bincount(codes_I, minlength=codes)),
                "prefixes": prefixes[level],
                "neighbour_agreement": _rounded(with_neighbour[level]),
                "category_agreement": _rounded(in_category[level]),
            }
            for level, codes_I in enumerate(codes_IL.T)
        },
    }


def collision_rate(codes_IL: np.ndarray) -> float:
    """Return the share of items that share their codes with another item."""
    _, sizes_G = group_by_codes(codes_IL)
    return round(1 - int((sizes_G == 1).sum()) / len(codes_IL), 6)


def code_usage(counts_V: np.ndarray) -> dict[str, float]:
    """Measure how evenly the codes of a level are used, from the number of items of each code.

    used_codes: codes with an item. entropy_bits: entropy of the distribution of items over codes. perplexity: 2 to the
    power of the entropy, the number of codes with this entropy if all were used equally. gini: 0 if all codes have
    equally many items, near 1 if one code has all items.
    """
    shares_V = np.sort(counts_V) / counts_V.sum()
    used = shares_V[shares_V > 0]
    entropy = max(0.0, float(-(used * np.log2(used)).sum()))  # one code alone: 0, not the -0.0 of the sum
    ranks_V = np.arange(1, len(shares_V) + 1)
    gini = float(((2 * ranks_V - len(shares_V) - 1) * shares_V).sum() / len(shares_V))
    return {
        "used_codes": len(used),
        "entropy_bits": round(entropy, 4),
        "perplexity": round(2**entropy, 3),
        "gini": round(gini, 4),
    }


def level_table(quality: Mapping[str, Any]) -> str:
    """Write `LEVEL_COLUMNS` as CSV, one row per level; a figure that does not exist is empty."""
    lines = [",".join(LEVEL_COLUMNS)]
    number = 1
    while (figures := quality.get(f"level_{number}")) is not None:
        cells = ["" if figures[column] is None else str(figures[column]) for column in LEVEL_COLUMNS[1:]]
        lines.append(",".join([f"level {number}", *cells]))
        number += 1
    return "\n".join(lines) + "\n"


def _prefixes(codes_IL: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Return (the number of distinct prefixes of each length, the sizes [G] of the groups of equal codes)."""
    counts = []
    groups_I = np.zeros(len(codes_IL), np.int64)
    for codes_I in codes_IL.T:
        groups_I = refined(groups_I, codes_I)
        counts.append(int(groups_I.max()) + 1)
    return counts, np.bincount(groups_I)


def _identical(vectors_Id: Vectors) -> np.ndarray:
    """Return whether the vector of each item is, bit by bit, that of another item; bool [I].

    Items with equal hashes are compared bit by bit, each with the one before it in the order of the hashes; so memory
    is that of two numbers per item.
    """
    hash_I = np.empty(len(vectors_Id), np.uint64)
    factors_d = np.random.default_rng(0).integers(2**63, size=vectors_Id.shape[1], dtype=np.uint64) * 2 + 1
    for block in blocks(vectors_Id.shape):
        bits_Pd = np.ascontiguousarray(vectors_Id[block], np.float32).view(np.uint32).astype(np.uint64)
        bits_Pd ^= bits_Pd << np.uint64(29)  # so that a change of the highest bits alone changes low bits too
        bits_Pd *= factors_d
        bits_Pd ^= bits_Pd >> np.uint64(32)
        hash_I[block] = bits_Pd.sum(axis=1, dtype=np.uint64)
    order = np.argsort(hash_I, kind="stable")
    hash_I = hash_I[order]
    alike = np.flatnonzero(hash_I[1:] == hash_I[:-1])  # positions in the order whose next item has the same hash
    same_I = np.zeros(len(order), bool)
    for part in blocks((len(alike), vectors_Id.shape[1])):
        first, second = (np.asarray(vectors_Id[order[alike[part] + step]]).view(np.uint32) for step in (0, 1))
        equal = alike[part][(first == second).all(axis=1)]
        same_I[order[equal]] = same_I[order[equal + 1]] = True
    return same_I


def _colliding_pairs(codes_IL: np.ndarray) -> float:
    """Return the share of the pairs of items that have the same codes; 0 where there is no pair."""
    _, sizes_G = group_by_codes(codes_IL)
    items = len(codes_IL)
    return float(f"{(sizes_G * (sizes_G - 1)).sum() / max(items * (items - 1), 1):.6g}")


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
