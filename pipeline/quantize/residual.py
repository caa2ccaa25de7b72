"""Residual quantization of the vectors themselves: each level learns a codebook of the residuals of the level before.

rkmeans and vqvae differ only in how a level learns; the loop over the levels is here.

Shape legend: I items, L levels, V codes of a level, d width of the embeddings.
"""

from collections.abc import Callable

import numpy as np

from pipeline.quantize.quantizer import Quantized, unit_rows

ROUNDING = 1e-6  # a residual shorter than this, relative to the longest row, is float32 rounding

Learn = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # rows [I, d], level -> codebook [V, d], codes [I]


def fit_residuals(vectors_Id: np.ndarray, levels: int, normalize_residuals: bool, learn: Learn) -> Quantized:
    """Quantize all items, level by level, with codebooks `level_1`.. float32 [V, d].

    With normalised residuals the codebooks of levels 2.. are in units of each residual's length, so the errors are
    those of a decoder that knows these lengths.

    Args:
        learn: learns one level from rows [I, d] and the number of the level.
    """
    # A vector (3, 4) with the nearest centroid (3, 3) leaves (0, 1) to the next level. Normalised residuals have the
    # length 1; scales_I multiplies the lengths that were divided out, to give errors in the units of the input.
    rows_Id = vectors_Id.astype(np.float32)
    scales_I = np.ones(len(vectors_Id))
    codes = []
    codebooks = {}
    for level in range(levels):
        if level and normalize_residuals:
            rows_Id, lengths_I = unit_rows(rows_Id)
            scales_I *= lengths_I
        codebook_Vd, codes_I = learn(rows_Id, level)
        last_rows_Id = rows_Id
        rows_Id = _residuals(rows_Id, codebook_Vd[codes_I])
        codes.append(codes_I)
        codebooks[f"level_{level + 1}"] = codebook_Vd

    def errors_with(codes_I: np.ndarray) -> np.ndarray:
        left_Id = _residuals(last_rows_Id, codebook_Vd[codes_I])
        errors_I: np.ndarray = scales_I * np.linalg.norm(left_Id.astype(np.float64), axis=1)
        return errors_I

    codes_IL = np.stack(codes, axis=1).astype(np.int32)
    return Quantized(codes_IL, codebooks, errors_with(codes_IL[:, -1]), last_rows_Id, errors_with)


def _residuals(rows_Id: np.ndarray, nearest_Id: np.ndarray) -> np.ndarray:
    """Subtract the centroids. A residual that is only rounding becomes zero: normalised, it would be a direction."""
    residuals_Id: np.ndarray = rows_Id - nearest_Id
    noise_I = np.linalg.norm(residuals_Id, axis=1) <= ROUNDING * np.linalg.norm(rows_Id, axis=1).max()
    residuals_Id[noise_I] = 0
    return residuals_Id
