"""What every quantizer promises, and what several of them need.

A new method is one file with a class that has `fit`, one line in `build_quantizer` (`pipeline/quantize/__init__.py`),
and its name in `QuantizeConfig`. The stage normalises the input, settles collisions and measures; a quantizer only
turns vectors into codes.

Shape legend: I items, L code levels, C codes of a level, d embedding width, k width of what the last level quantizes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.errors import UserError


@dataclass(frozen=True)
class Quantized:
    """What a quantizer made of the items.

    codes_IL: int32 [I, L], each in [0, codes). codebooks: tensors by name: `level_1`.. [C, k], the vectors that codes
    stand for, and what a network has beside them. errors_I: float64 [I], Euclidean distance of each vector to the one
    that its codes stand for. last_rows_Ik: what the last level quantized, each to the nearest row of its codebook.
    errors_with: what `errors_I` would be with other codes of the last level, int [I].
    """

    codes_IL: np.ndarray
    codebooks: dict[str, np.ndarray]
    errors_I: np.ndarray
    last_rows_Ik: np.ndarray
    errors_with: Callable[[np.ndarray], np.ndarray]


class Quantizer(Protocol):
    """Learns codebooks from all items and gives each item its codes. Equal input and seed give equal bytes."""

    def fit(self, vectors_Id: np.ndarray) -> Quantized:
        """vectors_Id: float32 [I, d], finite."""
        ...


def require_items(codes: int, items: int) -> None:
    """Raises UserError when there are more codes than items."""
    if codes > items:
        raise UserError(
            f"quantize.codes is {codes}, but there are only {items} items",
            "a level cannot hold more codes than items",
            f"set quantize.codes to about the square root of items: {round(items**0.5)}",
        )


def unit_rows(rows_Id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows of Euclidean length 1, their lengths before, [I]). A row of zeros stays zeros."""
    lengths_I = np.linalg.norm(rows_Id, axis=1)
    return rows_Id / np.where(lengths_I > 0, lengths_I, 1)[:, None], lengths_I
