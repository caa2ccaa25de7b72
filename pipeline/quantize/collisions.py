"""Group the items of equal codes, and number the items of a group by the deduplication digit.

Shape legend: I items, L levels, G groups of items with equal codes.
"""

import numpy as np

from pipeline.errors import UserError


def group_by_codes(codes_IL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (group of each item [I], size of each group [G]); groups are in lexicographic order of their codes."""
    # Level by level, the group so far and the code become one number, and the numbers in use are counted through again.
    # codes (2, 1), (0, 5), (2, 1) -> groups 1 0 1 by the first code; 1 * 6 + 1, 0 * 6 + 5, 7 -> groups 1 0 1
    groups_I = np.zeros(len(codes_IL), np.int64)
    for codes_I in codes_IL.T:
        groups_I = refined(groups_I, codes_I)
    return groups_I, np.bincount(groups_I)


def refined(groups_I: np.ndarray, codes_I: np.ndarray) -> np.ndarray:
    """Divide groups, numbered from 0, by one more code (0 or more); the new groups are numbered in the same order.

    Memory is that of a few numbers per item, whatever the number of codes.
    """
    numbers_I: np.ndarray = groups_I * (int(codes_I.max(initial=0)) + 1) + codes_I
    order = np.argsort(numbers_I, kind="stable")
    sorted_I = numbers_I[order]
    starts_I = np.empty(len(numbers_I), bool)
    starts_I[:1] = False
    np.not_equal(sorted_I[1:], sorted_I[:-1], out=starts_I[1:])
    numbers_I[order] = np.cumsum(starts_I)
    return numbers_I


def deduplication_digits(codes_IL: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """Return (deduplication digit of each item, int32 [I]; the number of values that a digit may take).

    The digits count the items of a group from 0, in the order of item ids; an item that is alone has 0.

    Args:
        codes_IL: row = item_id.
        width: number of values that a digit may take; 0: as many as the largest group needs.

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
            "the deduplication digit must tell these items apart",
            f"set quantize.digit_width to {largest} or more (0: as many as needed), or raise quantize.codes or "
            "quantize.levels, so that fewer items share their codes",
        )
    # groups_I 1 0 1 -> by_group 1 0 2, firsts_G 0 1 -> digits 0 0 1
    by_group = np.argsort(groups_I, kind="stable")
    firsts_G = np.cumsum(sizes_G) - sizes_G
    digits_I = np.empty(len(groups_I), dtype=np.int32)
    digits_I[by_group] = np.arange(len(groups_I)) - firsts_G[groups_I[by_group]]
    return digits_I, width or largest
