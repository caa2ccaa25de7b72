"""What a strategy may put between two blocks of an encoder, to make the sequences shorter from there on.

Shape legend: W windows, N items of all windows, S tokens of one item (separator included), T tokens before, d model
width.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from pipeline.ops.layout import Layout, Mass
from pipeline.packing.tokens import EncoderTokens


@dataclass(frozen=True)
class Packed:
    """The parts of `Histories` that a compiled encoder takes."""

    items_N: Tensor
    lengths_W: Tensor  # ascending where all tokens enter
    groups: tuple[tuple[int, int], ...]  # empty on a GPU
    longest: int  # items of the longest window, or a bound of it
    pad_to: int
    size: int  # places that a shortener leaves, of all windows; 0: there is none
    tokens: EncoderTokens | None = None  # those that enter the encoder; None: all


@dataclass(frozen=True)
class PrunedTokens:
    """What a `TokenPruner` leaves of the tokens."""

    h_Td: Tensor
    layout: Layout
    kept_NS: Tensor  # bool, per item and token of the histories: whether it goes on; packed order


class TokenPruner(Protocol):
    """Shortens the encoder's sequences between two blocks (strategies/rastp/)."""

    after_layer: int  # how many blocks see all tokens
    mass: Mass | None  # which attention mass of the last of them it needs
    pad_to: int  # encoder positions of every window, also of packed ones, where padding matters to it; else 0
    at_eval: bool  # also when not training
    keep_positions: bool  # later blocks get the position bias of the original positions; otherwise none

    def size(self, items_W: np.ndarray, longest: int, pad_to: int) -> int:
        """Places of all windows afterwards, told on the host so that nothing waits for the device."""
        ...

    def __call__(self, h_Td: Tensor, mass_T: Tensor | None, packed: Packed, training: bool) -> PrunedTokens:
        """Shorten; `mass_T` as asked for."""
        ...
