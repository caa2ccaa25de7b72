"""What a strategy may put between two blocks of an encoder, to make the sequences shorter from there on.

Shape legend: T tokens before, N items, S tokens of one item (separator included), d model width.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pipeline.backbones.attention import Layout, Mass
from pipeline.backbones.histories import Histories


@dataclass(frozen=True)
class Shortened:
    """What a `Shortener` leaves of the tokens."""

    h_Td: Tensor
    layout: Layout
    kept_NS: Tensor  # bool, per item and token of the histories: whether it goes on; packed order


class Shortener(Protocol):
    """Shortens the encoder's sequences between two blocks (strategies/rastp.py)."""

    after_layer: int  # how many blocks see all tokens
    mass: Mass | None  # which attention mass of the last of them it needs
    pad_to: int  # encoder positions of every window, also of packed ones, where padding matters to it; else 0
    at_eval: bool  # also when not training
    keep_positions: bool  # later blocks get the position bias of the original positions; otherwise none

    def __call__(self, h_Td: Tensor, mass_T: Tensor | None, layout: Layout, histories: Histories,
                 training: bool) -> Shortened: ...
