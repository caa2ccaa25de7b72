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
from pipeline.quantize.config import FEWEST_CODES
from pipeline.quantize.rows import Vectors


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A level was learned from a sample of the items.

    points: items of the sample. items: all that it was drawn from. excess: how much larger the mean squared error of
    the items left out is than that of the sample, as a share. Learned from all items, the mean error would in
    expectation be no smaller than the sample's and no larger than that of the items left out, as far as k-means finds
    the best centroids of what it learns from; so the sampling cost no more than this share.
    """

    points: int
    items: int
    excess: float


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The codes of all items, and the codebooks behind them.

    codes_IL: int32 [I, L], each in [0, codes). codebooks: tensors by name: `level_1`.. [V, k], the vectors that codes
    stand for, and the weights of a network if the quantizer has one. errors_I: float64 [I], Euclidean distance of each
    vector to the vector that its codes stand for. last_rows_Ik: the vectors that the last level quantized, each by the
    nearest row of its codebook. sampled: a `Sampled` for each level that was learned from
    a sample of the items. errors_with: computes `errors_I` for other codes of the last level, int [I].
    """

    codes_IL: np.ndarray
    codebooks: dict[str, np.ndarray]
    errors_I: np.ndarray
    last_rows_Ik: Vectors
    errors_with: Callable[[np.ndarray], np.ndarray]
    sampled: tuple[Sampled, ...] = ()


class Quantizer(Protocol):
    """Learn codebooks from all items and give each item its codes. Equal input and seed give equal bytes."""

    def fit(self, vectors_Id: Vectors) -> Quantized:
        """Quantize all items; vectors_Id is float32 [I, d], finite, and may be computed block by block."""
        ...


def require_items(codes: int, items: int) -> None:
    """Raise UserError if there are more codes than items, or fewer items than codes that a level may have."""
    if items < FEWEST_CODES:
        raise UserError(
            "the catalogue has a single item",
            "no model can rank it before or behind another",
            "bring a log with more items, or lower ingest.k_core",
        )
    if codes > items:
        raise UserError(
            f"quantize.codes is {codes}, but there are only {items} items",
            "a level cannot have more codes than there are items",
            f"set quantize.codes to about the square root of items: {max(round(items**0.5), FEWEST_CODES)}",
        )
