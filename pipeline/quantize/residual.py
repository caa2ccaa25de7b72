"""Residual quantization of the vectors themselves: each level learns a codebook of what the levels before left over.

rkmeans and vqvae differ only in how a level learns; the walk over the levels is here.

Shape legend: I items, L code levels, C codes of a level, d embedding width.
"""

from collections.abc import Callable

import numpy as np

from pipeline.quantize.quantizer import Quantized, unit_rows

ROUNDING = 1e-6  # a residual shorter than this, relative to the longest row, is float32 rounding

Learn = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # rows [I, d], level -> codebook [C, d], codes [I]


def fit_residuals(vectors_Id: np.ndarray, levels: int, normalize_residuals: bool, learn: Learn) -> Quantized:
    """Codes, codebooks `level_1`.. float32 [C, d] and errors of all items.

    With normalised residuals the codebooks of levels 2.. are in units of the residual's own length, so the errors are
    those of a decoder that knows these lengths.
    """
    rows_Id = vectors_Id.astype(np.float32)
    scales_I = np.ones(len(vectors_Id))
    codes, codebooks = [], {}
    for level in range(levels):
        if level and normalize_residuals:
            rows_Id, lengths_I = unit_rows(rows_Id)
            scales_I *= lengths_I
        codebook_Cd, codes_I = learn(rows_Id, level)
        last_rows_Id, rows_Id = rows_Id, _residuals(rows_Id, codebook_Cd[codes_I])
        codes.append(codes_I)
        codebooks[f"level_{level + 1}"] = codebook_Cd

    def errors_with(codes_I: np.ndarray) -> np.ndarray:
        left_Id = _residuals(last_rows_Id, codebook_Cd[codes_I])
        return scales_I * np.linalg.norm(left_Id.astype(np.float64), axis=1)

    codes_IL = np.stack(codes, axis=1).astype(np.int32)
    return Quantized(codes_IL, codebooks, errors_with(codes_IL[:, -1]), last_rows_Id, errors_with)


def _residuals(rows_Id: np.ndarray, nearest_Id: np.ndarray) -> np.ndarray:
    """What the centroids leave over; what is only rounding becomes zero, as normalised it would be a direction."""
    residuals_Id = rows_Id - nearest_Id
    noise_I = np.linalg.norm(residuals_Id, axis=1) <= ROUNDING * np.linalg.norm(rows_Id, axis=1).max()
    residuals_Id[noise_I] = 0
    return residuals_Id
