"""The protocol of all quantizers, and functions that several of them share.

A new method is one file with a class that has `fit`, one line in `build_quantizer` (`pipeline/quantize/__init__.py`),
and its name in `QuantizeConfig`. The stage normalises the input, settles collisions and measures; a quantizer only
turns vectors into codes.

Shape legend: I items, L levels, V codes of a level, d width of the embeddings, k width of the vectors that the last
level quantizes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.errors import UserError


@dataclass(frozen=True)
class Quantized:
    """The codes of all items, and the codebooks behind them.

    codes_IL: int32 [I, L], each in [0, codes). codebooks: tensors by name: `level_1`.. [V, k], the vectors that codes
    stand for, and the weights of a network if the quantizer has one. errors_I: float64 [I], Euclidean distance of each
    vector to the vector that its codes stand for. last_rows_Ik: the vectors that the last level quantized, each by the
    nearest row of its codebook. errors_with: computes `errors_I` for other codes of the last level, int [I].
    """

    codes_IL: np.ndarray
    codebooks: dict[str, np.ndarray]
    errors_I: np.ndarray
    last_rows_Ik: np.ndarray
    errors_with: Callable[[np.ndarray], np.ndarray]


class Quantizer(Protocol):
    """Learn codebooks from all items and give each item its codes. Equal input and seed give equal bytes."""

    def fit(self, vectors_Id: np.ndarray) -> Quantized:
        """Quantize all items; vectors_Id is float32 [I, d], finite."""
        ...


def require_items(codes: int, items: int) -> None:
    """Raise UserError if there are more codes than items."""
    if codes > items:
        raise UserError(
            f"quantize.codes is {codes}, but there are only {items} items",
            "a level cannot have more codes than there are items",
            f"set quantize.codes to about the square root of items: {round(items**0.5)}",
        )


def unit_rows(rows_Id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows scaled to the Euclidean length 1, their lengths before [I]); a row of zeros stays zeros."""
    lengths_I = np.linalg.norm(rows_Id, axis=1)
    return rows_Id / np.where(lengths_I > 0, lengths_I, 1)[:, None], lengths_I
