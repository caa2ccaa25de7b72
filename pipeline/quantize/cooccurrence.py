"""Make item vectors from the interactions of the training part: which items one user had shortly after each other.

Source: Levy and Goldberg, "Neural Word Embedding as Implicit Matrix Factorization", NeurIPS 2014. Items stand for words
and for contexts, and a user's sequence stands for a sentence:

    #(i, j)  weighted number of pairs of i and j in one sequence, at most `window` steps apart; both orders count
    SPPMI    max(log(#(i, j) #all / (#(i) #(j))) - log shift, 0), where #(i) is the sum of row i, #all that of all rows
    vectors  U sqrt(S) of the truncated SVD, U S V' = SPPMI (their Eq. 13, the symmetric variant)

A pair that is d steps apart has the weight window + 1 - d: the average of word2vec, which draws the size of each
window. SPPMI does not depend on the scale of the weights, so they are whole numbers, and their sums do not depend on
the order of adding. Differences from the paper: an item does not co-occur with itself, and the vectors have length 1.

Shape legend: N interactions of all users end to end, U users, I items, P positions of a chunk, d width of the vectors.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from pipeline.artifacts import TrainingPart
from pipeline.errors import RESTORE, UserError
from pipeline.quantize.rows import unit_rows

# Where the randomized SVD starts; its result hardly depends on it. params.seed is not used: a seed changes no vector.
SEED = 42
CHUNK = 2**22  # positions whose pairs are counted at once
# A vector shorter than this share of the longest one is what float32 rounds: the item is in none of the dimensions.
NEGLIGIBLE = 1e-5


@dataclass(frozen=True)
class InteractionVectors:
    """`InteractionVectors` hold what the interactions of the training part say about the items.

    vectors_Id: float32 [I, d], each of length 1, or zeros for an item that co-occurs with no other more often than by
    chance, or that the truncated SVD leaves out. pairs: how many
    (unordered) pairs of items have a positive SPPMI.
    """

    vectors_Id: np.ndarray
    pairs: int


def interaction_vectors(
    part: TrainingPart, items: int, *, window: int, shift: float, dimensions: int
) -> InteractionVectors:
    """Compute the vectors of `items` items; d is `dimensions`, or less if fewer items co-occur.

    Raises:
        UserError: no pair of items has a positive SPPMI.
    """
    weights_II = shifted_ppmi(pair_counts(part, items, window), shift)
    related_I = np.diff(weights_II.indptr) > 0
    if not related_I.any():
        raise UserError(
            "the interactions of the training part relate no item to another",
            f"no two items co-occur more often than by chance times quantize.interaction_shift ({shift:g}), at most "
            f"{window} steps apart",
            "widen quantize.interaction_window, lower quantize.interaction_shift (1 is the least), or set "
            f"quantize.interactions to 0 and bring texts or vectors of the items\n{RESTORE}",
        )
    width = min(dimensions, int(related_I.sum()))
    # One thread: a parallel sum may round differently, and the bytes must not depend on the machine's load.
    with threadpool_limits(limits=1):
        left_Id, scale_d, _ = randomized_svd(weights_II, width, n_iter=5, flip_sign=False, random_state=SEED)
        # The SVD leaves the sign of each dimension open: the largest entry of each becomes positive.
        left_Id *= np.sign(left_Id[np.abs(left_Id).argmax(axis=0), np.arange(width)])
        vectors_Id = (left_Id * np.sqrt(scale_d)).astype(np.float32)
        unit_Id, lengths_I = unit_rows(vectors_Id)
    unit_Id[~related_I | (lengths_I < NEGLIGIBLE * lengths_I.max())] = 0
    return InteractionVectors(unit_Id.astype(np.float32), weights_II.nnz // 2)


def pair_counts(part: TrainingPart, items: int, window: int) -> sparse.csr_array:
    """Return #(i, j), int64 [I, I] (int32 where no sum can be larger), symmetric, without a diagonal.

    Only pairs of two training interactions of one user count.
    """
    offsets = np.asarray(part.offsets)
    ends_U = np.asarray(part.train_end)
    most = len(part.items_N) * window * (window + 1)  # the sum over the whole matrix is at most this
    upper = sparse.csr_array((items, items), dtype=np.int32 if most < 2**31 else np.int64)
    for start in range(0, len(part.items_N), CHUNK):
        positions_P = np.arange(start, min(start + CHUNK, len(part.items_N)))
        end_P = ends_U[np.searchsorted(offsets, positions_P, side="right") - 1]
        for step in range(1, window + 1):
            # Training comes first in each sequence: where the later item of a pair is in training, the earlier one is.
            earlier_P = positions_P[positions_P + step < end_P]
            if not len(earlier_P):
                break  # the window is wider than every sequence of this chunk
            first_P, second_P = part.items_N[earlier_P], part.items_N[earlier_P + step]
            different_P = first_P != second_P
            rows_P = np.minimum(first_P, second_P)[different_P]
            columns_P = np.maximum(first_P, second_P)[different_P]
            weights_P = np.full(len(rows_P), window + 1 - step, upper.dtype)
            upper = upper + sparse.csr_array((weights_P, (rows_P, columns_P)), shape=upper.shape)
    return sparse.csr_array(upper + upper.T)


def shifted_ppmi(counts_II: sparse.csr_array, shift: float) -> sparse.csr_array:
    """Return SPPMI of symmetric counts, float32 [I, I], without entries that are 0."""
    sums_I = counts_II.sum(axis=1).astype(np.float64)
    log_I = np.log(np.where(sums_I > 0, sums_I, 1))
    ppmi = sparse.csr_array(counts_II, dtype=np.float32, copy=True)
    bias = np.log(sums_I.sum()) - np.log(shift) if sums_I.any() else 0.0
    for start in range(0, counts_II.nnz, CHUNK):
        entries = slice(start, start + CHUNK)
        rows = np.searchsorted(counts_II.indptr, np.arange(start, min(start + CHUNK, counts_II.nnz)), side="right") - 1
        pmi = np.log(counts_II.data[entries]) + bias - log_I[rows] - log_I[counts_II.indices[entries]]
        ppmi.data[entries] = np.maximum(pmi, 0)
    ppmi.eliminate_zeros()
    return ppmi
