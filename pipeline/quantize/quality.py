"""How good the Semantic IDs are before a generator is trained on them: quality.json.

Shape legend: I items, L code levels, C codes of a level, G groups of items with equal codes, d embedding width.
"""

from typing import Any

import numpy as np

from pipeline.quantize.collisions import group_by_codes
from pipeline.quantize.quantizer import Quantized


def measure(vectors_Id: np.ndarray, quantized: Quantized, codes: int) -> dict[str, Any]:
    """Flat numbers, and one mapping per level. All of it is about the codes without the deduplication digit.

    collision_rate: share of items that share their codes with another. relative_reconstruction_error: squared errors
    over squared lengths of what was quantized. The levels: see `code_usage`.
    """
    codes_IL = quantized.codes_IL
    _, sizes_G = group_by_codes(codes_IL)
    energy = np.square(vectors_Id, dtype=np.float64).sum()
    return {
        "items": len(codes_IL),
        "unique_codes": len(sizes_G),
        "collision_rate": round(1 - int((sizes_G == 1).sum()) / len(codes_IL), 6),
        "largest_group": int(sizes_G.max()),
        "two_level_prefixes": len(group_by_codes(codes_IL[:, :2])[1]),
        "relative_reconstruction_error": round(float(np.square(quantized.errors_I).sum() / energy), 6),
        **{f"level_{level + 1}": code_usage(np.bincount(codes_I, minlength=codes))
           for level, codes_I in enumerate(codes_IL.T)},
    }


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
    return {"used_codes": len(used), "entropy_bits": round(entropy, 4), "perplexity": round(2**entropy, 3),
            "gini": round(gini, 4)}
