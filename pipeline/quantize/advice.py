"""Compute how many levels and codes a wanted collision rate takes, from the collisions that were measured.

Two items share a Semantic ID with a chance q, the share of pairs that do. Items that all have the chance q with each
other item collide at a rate of 1 - exp(-q (I - 1)); the rate is lower where chances differ (by Jensen's inequality), so
this q suffices. L levels of V codes give q = V^(-a L), where a would be 1 if codes were independent and all used
alike. The measured q says a, which is then taken to hold for other sizes. That is an estimate: a catalogue may have
parts that more codes do not divide as well.

Shape legend: I items, L levels, V codes of a level.
"""

import math
from dataclasses import dataclass

MOST_LEVELS = 32
MOST_BITS = 16  # of a code


@dataclass(frozen=True)
class Sizes:
    """Sizes that would reach the wanted rate, each beside the other size as it is; None: none within bounds would."""

    levels: int | None  # with as many codes
    codes: int | None  # with as many levels; a power of two


def sizes_for(wanted: float, *, pairs: float, identical: float, items: int, levels: int, codes: int) -> Sizes | None:
    """Return sizes of which a collision rate of `wanted` is expected; None where none can be told.

    Args:
        wanted: share of items that may share their codes with another.
        pairs: q with `levels` and `codes`, among the items whose vector no other item has.
        identical: share of items with the vector of another, which collide at any size.
    """
    apart = items * (1 - identical)
    if not (identical < wanted < 1 and 0 < pairs < 1 and apart > 1):
        return None
    wanted_pairs = -math.log1p(-(wanted - identical) / (1 - identical)) / (apart - 1)
    if wanted_pairs >= pairs:
        return None
    exponent = -math.log(pairs) / (levels * math.log(codes))
    # V^(-a L) <= wanted_pairs, solved for L and for V
    more_levels = math.ceil(-math.log(wanted_pairs) / (exponent * math.log(codes)) - 1e-9)
    bits = math.ceil(-math.log2(wanted_pairs) / (exponent * levels) - 1e-9)
    return Sizes(more_levels if more_levels <= MOST_LEVELS else None, 2**bits if bits <= MOST_BITS else None)
