"""What every quantizer promises, and which one `quantize.method` names.

A new method is one file with a class that has `fit`, one line in `build_quantizer`, and its name in `QuantizeConfig`.
The stage normalises the input, deduplicates and measures; a quantizer only turns vectors into codes.

Shape legend: I items, L code levels, d embedding width.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.quantize.config import QuantizeConfig


@dataclass(frozen=True)
class Quantized:
    """What a quantizer made of the items.

    codes_IL: int32 [I, L], each in [0, codes). codebooks: tensors by name (`level_1` [codes, d], ...).
    errors_I: float64 [I], Euclidean distance of each vector to the one that its codes stand for.
    """

    codes_IL: np.ndarray
    codebooks: dict[str, np.ndarray]
    errors_I: np.ndarray


class Quantizer(Protocol):
    """Learns codebooks from all items and gives each item its codes. Equal input and seed give equal bytes."""

    def fit(self, vectors_Id: np.ndarray) -> Quantized:
        """vectors_Id: float32 [I, d], finite."""
        ...


def build_quantizer(config: QuantizeConfig, seed: int) -> Quantizer:
    """The quantizer that `config.method` names; its libraries are loaded only here."""
    from pipeline.quantize.rkmeans import RKMeans

    return RKMeans(levels=config.levels, codes=config.codes, normalize_residuals=config.normalize_residuals,
                   iterations=config.iterations, restarts=config.restarts, seed=seed)


def unit_rows(rows_Id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows of Euclidean length 1, their lengths before, [I]). A row of zeros stays zeros."""
    lengths_I = np.linalg.norm(rows_Id, axis=1)
    return rows_Id / np.where(lengths_I > 0, lengths_I, 1)[:, None], lengths_I
