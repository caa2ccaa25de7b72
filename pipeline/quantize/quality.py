"""How good the Semantic IDs are before a generator is trained on them: quality.json and levels.csv.

Shape legend: I items, L code levels, C codes of a level, G groups of items with equal codes, d embedding width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.quantize.collisions import group_by_codes
from pipeline.quantize.neighbours import category_agreement, neighbour_agreement
from pipeline.quantize.quantizer import Quantized

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
    vectors_Id: np.ndarray, quantized: Quantized, codes: int, categories_I: np.ndarray | None = None
) -> dict[str, Any]:
    """Flat numbers, and one mapping per level. All of it is about the codes without the deduplication digit.

    collision_rate: share of items that share their codes with another. identical_vectors: share of items whose vector
    is that of another, which no quantizer can tell apart. relative_reconstruction_error: squared errors over squared
    lengths of what was quantized. category_agreement_by_chance: that of all pairs, null without categories. The levels:
    see `code_usage`; prefixes: distinct codes up to the level; agreements: see neighbours.py.

    Args:
        categories_I: int [I], -1 where an item has none; None: no item has one.
    """
    codes_IL = quantized.codes_IL
    _, sizes_G = group_by_codes(codes_IL)
    energy = np.square(vectors_Id, dtype=np.float64).sum()
    none = np.full(len(codes_IL), -1) if categories_I is None else categories_I
    in_category, by_chance = category_agreement(codes_IL, none)
    with_neighbour = neighbour_agreement(vectors_Id, codes_IL)
    return {
        "items": len(codes_IL),
        "unique_codes": len(sizes_G),
        "collision_rate": collision_rate(codes_IL),
        "largest_group": int(sizes_G.max()),
        "identical_vectors": _identical(vectors_Id),
        "two_level_prefixes": len(group_by_codes(codes_IL[:, :2])[1]),
        "relative_reconstruction_error": round(float(np.square(quantized.errors_I).sum() / energy), 6),
        "category_agreement_by_chance": _rounded(by_chance),
        **{
            f"level_{level + 1}": {
                **code_usage(np.bincount(codes_I, minlength=codes)),
                "prefixes": len(group_by_codes(codes_IL[:, : level + 1])[1]),
                "neighbour_agreement": _rounded(with_neighbour[level]),
                "category_agreement": _rounded(in_category[level]),
            }
            for level, codes_I in enumerate(codes_IL.T)
        },
    }


def collision_rate(codes_IL: np.ndarray) -> float:
    """Share of items that share their codes with another."""
    _, sizes_G = group_by_codes(codes_IL)
    return round(1 - int((sizes_G == 1).sum()) / len(codes_IL), 6)


def code_usage(counts_C: np.ndarray) -> dict[str, float]:
    """How evenly the codes of a level are used, from how many items have each.

    used_codes: codes with an item. entropy_bits: of the distribution of items over codes. perplexity: 2 to that power,
    the number of codes that would be as uneven if they were used equally. gini: 0 all equal, towards 1 one has all.
    """
    shares_C = np.sort(counts_C) / counts_C.sum()
    used = shares_C[shares_C > 0]
    entropy = max(0.0, float(-(used * np.log2(used)).sum()))  # one code alone: 0, not the -0.0 of the sum
    ranks_C = np.arange(1, len(shares_C) + 1)
    gini = float(((2 * ranks_C - len(shares_C) - 1) * shares_C).sum() / len(shares_C))
    return {
        "used_codes": len(used),
        "entropy_bits": round(entropy, 4),
        "perplexity": round(2**entropy, 3),
        "gini": round(gini, 4),
    }


def level_table(quality: Mapping[str, Any]) -> str:
    """CSV of `LEVEL_COLUMNS`, one row per level; a figure that does not exist is empty."""
    lines = [",".join(LEVEL_COLUMNS)]
    number = 1
    while (figures := quality.get(f"level_{number}")) is not None:
        cells = ["" if figures[column] is None else str(figures[column]) for column in LEVEL_COLUMNS[1:]]
        lines.append(",".join([f"level {number}", *cells]))
        number += 1
    return "\n".join(lines) + "\n"


def _identical(vectors_Id: np.ndarray) -> float:
    """Share of items whose vector is, bit by bit, that of another."""
    rows = np.ascontiguousarray(vectors_Id)
    _, counts = np.unique(rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0], return_counts=True)
    return round(int(counts[counts > 1].sum()) / len(rows), 6)


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
