"""Residual quantization of the vectors themselves: each level learns a codebook of the residuals of the level before.

rkmeans and vqvae differ only in how a level learns; the loop over the levels is here.

Shape legend: I items, L levels, V codes of a level, d width of the embeddings.
"""

from collections.abc import Callable

import numpy as np

from pipeline.quantize.quantizer import Quantized
from pipeline.quantize.rows import LevelRows, Vectors

Learn = Callable[[LevelRows, int], tuple[np.ndarray, np.ndarray]]  # rows [I, d], level -> codebook [V, d], codes [I]


def fit_residuals(vectors_Id: Vectors, levels: int, normalize_residuals: bool, learn: Learn) -> Quantized:
    """Quantize all items, level by level, with codebooks `level_1`.. float32 [V, d].

    With normalised residuals the codebooks of levels 2.. are in units of each residual's length, so the errors are
    those of a decoder that knows these lengths.

    Args:
        learn: learns one level from rows [I, d] and the number of the level.
    """
    rows_Id = LevelRows(vectors_Id, normalize_residuals)
    codes_IL = np.empty((len(rows_Id), levels), np.int32)
    codebooks = {}
    for level in range(levels):
        codebook_Vd, codes_IL[:, level] = learn(rows_Id, level)
        codebooks[f"level_{level + 1}"] = codebook_Vd
        if level < levels - 1:
            rows_Id = rows_Id.after(codebook_Vd, codes_IL[:, level])

    def errors_with(codes_I: np.ndarray) -> np.ndarray:
        return rows_Id.errors(codebook_Vd, codes_I)

    return Quantized(
        codes_IL=codes_IL,
        codebooks=codebooks,
        errors_I=errors_with(codes_IL[:, -1]),
        last_rows_Ik=rows_Id,
        errors_with=errors_with,
    )
