"""Items that got the same codes, and the deduplication digit that tells them apart.

Shape legend: I items, L code levels, G groups of items with equal codes.
"""

import numpy as np

from pipeline.errors import UserError


def group_by_codes(codes_IL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(group of each item [I], size of each group [G]); groups are numbered in lexicographic order of their codes."""
    order = np.lexsort(codes_IL.T[::-1])
    sorted_IL = codes_IL[order]
    starts = np.ones(len(codes_IL), dtype=bool)
    starts[1:] = (sorted_IL[1:] != sorted_IL[:-1]).any(axis=1)
    groups_I = np.empty(len(codes_IL), dtype=np.int64)
    groups_I[order] = np.cumsum(starts) - 1
    return groups_I, np.bincount(groups_I)


def deduplication_digits(codes_IL: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """(digit of each item int32 [I], how many values it may take).

    The digit is the item's rank inside its group, in the order of item ids; an item alone has 0.

    Args:
        codes_IL: row = item_id.
        width: values the digit may take; 0: as many as the largest group needs.

    Raises:
        UserError: a group is larger than `width`.
    """
    groups_I, sizes_G = group_by_codes(codes_IL)
    largest = int(sizes_G.max())
    if width and largest > width:
        members = np.flatnonzero(groups_I == sizes_G.argmax())
        raise UserError(
            f"quantize.digit_width is {width}, but {largest} items share the codes {codes_IL[members[0]].tolist()}: "
            f"item_id {', '.join(map(str, members[:5]))}{', ...' if largest > 5 else ''}",
            "the deduplication digit must tell them apart",
            f"set quantize.digit_width to {largest} or more (0: as many as needed), or lower the collisions with more "
            "quantize.codes or quantize.levels",
        )
    by_group = np.argsort(groups_I, kind="stable")
    firsts_G = np.cumsum(sizes_G) - sizes_G
    digits_I = np.empty(len(groups_I), dtype=np.int32)
    digits_I[by_group] = np.arange(len(groups_I)) - firsts_G[groups_I[by_group]]
    return digits_I, width or largest
