"""Other codes of the last level for items of equal codes, so that no digit is needed to tell them apart.

Source: LC-Rec (Zheng et al. 2024), section 3.2: where items collide, the last level is assigned by optimal transport
with uniform shares per code, solved by Sinkhorn's iterations. Its code repeats that and takes each item's best code,
which may collide again. Deliberately different: within each prefix the plan is rounded to the assignment of the highest
total that gives every free code to one item at most, so collisions remain only where a prefix has more items than a
level has codes.

Shape legend: I items, L code levels, C codes of a level, k width of what the last level quantizes, M items of a prefix
that collide, F codes of that prefix that they may have.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from pipeline.quantize.collisions import group_by_codes

ITERATIONS = 50
SHARPNESS = 20  # the mean cost, in units of the plan's temperature


def spread_last_codes(codes_IL: np.ndarray, rows_Ik: np.ndarray, vectors_Ck: np.ndarray) -> np.ndarray:
    """int32 [I]: the last codes; those of items that share theirs with nobody stay.

    Args:
        rows_Ik: what the last level quantized.
        vectors_Ck: the last level's codebook.
    """
    last_I = codes_IL[:, -1].copy()
    groups_I, sizes_G = group_by_codes(codes_IL)
    collides_I = sizes_G[groups_I] > 1
    prefix_I, _ = group_by_codes(np.pad(codes_IL[:, :-1], ((0, 0), (1, 0))))  # a constant first: one level has none
    concerned = np.flatnonzero(np.isin(prefix_I, prefix_I[collides_I]))
    concerned = concerned[np.argsort(prefix_I[concerned], kind="stable")]
    for items in np.split(concerned, np.flatnonzero(np.diff(prefix_I[concerned])) + 1):
        movers_M, unmoved = items[collides_I[items]], items[~collides_I[items]]
        free_F = np.setdiff1d(np.arange(len(vectors_Ck)), last_I[unmoved])
        if len(movers_M):
            last_I[movers_M] = free_F[assign(_squares(rows_Ik[movers_M], vectors_Ck[free_F]))]
    return last_I


def _squares(rows_Mk: np.ndarray, vectors_Fk: np.ndarray) -> np.ndarray:
    """float64 [M, F]: squared distances."""
    rows_Mk, vectors_Fk = rows_Mk.astype(np.float64), vectors_Fk.astype(np.float64)
    return np.square(rows_Mk).sum(1, keepdims=True) - 2 * rows_Mk @ vectors_Fk.T + np.square(vectors_Fk).sum(1)


def assign(costs_MF: np.ndarray) -> np.ndarray:
    """int [M]: a code for each item, no code more often than ceil(M / F) times."""
    plan_MF = transport_plan(costs_MF)
    items, codes = plan_MF.shape
    _, columns_M = linear_sum_assignment(np.tile(plan_MF, -(-items // codes)), maximize=True)
    return columns_M % codes


def transport_plan(costs_MF: np.ndarray) -> np.ndarray:
    """Logarithm of the plan [M, F]: each item has a share of 1 / M, and each code takes 1 / F of them all."""
    log_MF = -costs_MF * (SHARPNESS / (costs_MF.mean() or 1.0))
    items, codes = costs_MF.shape
    for _ in range(ITERATIONS):
        log_MF = log_MF - logsumexp(log_MF, axis=1, keepdims=True) - np.log(items)
        log_MF = log_MF - logsumexp(log_MF, axis=0, keepdims=True) - np.log(codes)
    return log_MF
