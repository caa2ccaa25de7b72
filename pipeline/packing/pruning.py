"""What a strategy may put between two blocks of an encoder, to make the sequences shorter from there on.

Shape legend: W windows, N items of all windows, S tokens of one item (separator included), T tokens before, O places
after, d model width.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from pipeline.ops.layout import Layout, Mass
from pipeline.packing.histories import Histories


@dataclass(frozen=True, kw_only=True)
class PrunedTokens:
    """Which tokens go on, and where they lie afterwards."""

    source_O: Tensor  # int64: the token that each place takes; where the place is empty, any
    slot_T: Tensor  # int64: the place of each token; -1: it is dropped
    position_O: Tensor | None  # each place's position in its window before (any where it is empty); None: forgotten
    taken_W: Tensor  # int64: places that each window takes
    capacity_W: Tensor  # int64: places that each window has
    kept_NS: Tensor  # bool: whether each token of the histories goes on; packed order
    longest: int  # places of the longest window, or a bound of it
    reach: int  # positions of the longest window before, or a bound of it

    def layout(self) -> Layout:
        """The self-attention of what goes on."""
        return Layout.packed(
            self.taken_W, self.longest, capacities_W=self.capacity_W, positions_S=self.position_O, reach=self.reach
        )


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

    def __call__(
        self, h_Td: Tensor, mass_T: Tensor | None, histories: Histories, *, size: int, training: bool
    ) -> tuple[Tensor, PrunedTokens]:
        """The states that go on, [O, d], and which they are.

        Args:
            mass_T: as `mass` asks for it.
            histories: their `pad_to` is what the encoder pads to.
            size: O, as `size` tells it or more.
        """
        ...
