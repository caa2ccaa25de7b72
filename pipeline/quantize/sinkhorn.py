"""Give items of equal codes other codes of the last level, so that no deduplication digit is needed.

Source: LC-Rec (Zheng et al. 2024), section 3.2: the last codes of items that collide are assigned by optimal transport
with uniform shares per code, solved by Sinkhorn's iterations. The paper's code repeats the transport and takes each
item's best code, so items may collide again. Deliberately different: within each prefix the plan is rounded to the
assignment of the highest total that gives every free code to at most one item, so collisions remain only where a prefix
has more items than a level has codes.

Shape legend: I items, L levels, V codes of a level, k width of the vectors that the last level quantizes, M items of a
prefix that collide, F last codes of that prefix that no other item has.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from pipeline.quantize.collisions import group_by_codes
from pipeline.quantize.rows import Vectors

ITERATIONS = 50
SHARPNESS = 20  # the mean cost, in units of the transport's temperature


def spread_last_codes(codes_IL: np.ndarray, rows_Ik: Vectors, vectors_Vk: np.ndarray) -> np.ndarray:
    """Return the last codes, int32 [I]; an item that shares its codes with no other has its code unchanged.

    The comments follow one example: items 0 to 3 have the codes (7, 4), (7, 4), (7, 5) and (8, 4).

    Args:
        codes_IL: the quantizer's codes.
        rows_Ik: the rows that the last level quantized.
        vectors_Vk: the last level's codebook.
    """
    # Items 0 and 1 collide: collides_I 1 1 0 0
    last_I = codes_IL[:, -1].copy()
    groups_I, sizes = group_by_codes(codes_IL)
    collides_I = sizes[groups_I] > 1

    # The prefix is all codes but the last: prefix_I 0 0 0 1. The constant column in front serves IDs of one level.
    prefix_I, _ = group_by_codes(np.pad(codes_IL[:, :-1], ((0, 0), (1, 0))))

    # Only items of a prefix with a collision are concerned, sorted by prefix: 0 1 2
    concerned = np.flatnonzero(np.isin(prefix_I, prefix_I[collides_I]))
    concerned = concerned[np.argsort(prefix_I[concerned], kind="stable")]

    # Prefix by prefix: items 0 and 1 move, item 2 does not, and its code 5 is not free for them.
    for items in np.split(concerned, np.flatnonzero(np.diff(prefix_I[concerned])) + 1):
        movers_M = items[collides_I[items]]
        unmoved = items[~collides_I[items]]
        free_F = np.setdiff1d(np.arange(len(vectors_Vk)), last_I[unmoved])
        if len(movers_M):
            last_I[movers_M] = free_F[assign(_squares(rows_Ik[movers_M], vectors_Vk[free_F]))]
    return last_I


def _squares(rows_Mk: np.ndarray, vectors_Fk: np.ndarray) -> np.ndarray:
    """Return the squared distances of rows and vectors, float64 [M, F]."""
    rows_Mk = rows_Mk.astype(np.float64)
    vectors_Fk = vectors_Fk.astype(np.float64)
    lengths_M1 = np.square(rows_Mk).sum(1, keepdims=True)
    squares_MF: np.ndarray = lengths_M1 - 2 * rows_Mk @ vectors_Fk.T + np.square(vectors_Fk).sum(1)
    return squares_MF


def assign(costs_MF: np.ndarray) -> np.ndarray:
    """Return a column of `costs_MF` for each item, int [M]; no column is taken more than ceil(M / F) times."""
    plan_MF = transport_plan(costs_MF)
    items, codes = plan_MF.shape
    # 5 items and 2 codes: the plan stands 3 times side by side, and columns 0, 2 and 4 are all code 0
    _, columns_M = linear_sum_assignment(np.tile(plan_MF, -(-items // codes)), maximize=True)
    codes_M: np.ndarray = columns_M % codes
    return codes_M


def transport_plan(costs_MF: np.ndarray) -> np.ndarray:
    """Return the logarithm of the plan [M, F]: each item has a share of 1 / M, and each code takes a share of 1 / F."""
    log_MF: np.ndarray = -costs_MF * (SHARPNESS / (costs_MF.mean() or 1.0))
    items, codes = costs_MF.shape
    for _ in range(ITERATIONS):
        # Sinkhorn: scale the rows to sums of 1 / M, then the columns to sums of 1 / F, in logarithms.
        log_MF = log_MF - logsumexp(log_MF, axis=1, keepdims=True) - np.log(items)
        log_MF = log_MF - logsumexp(log_MF, axis=0, keepdims=True) - np.log(codes)
    return log_MF
