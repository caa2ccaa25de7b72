"""Declare what a strategy may put between two blocks of an encoder to shorten the sequences from there on.

Shape legend: W windows, N items of all windows, S tokens of one item (separator included), T tokens before,
O slots after, d model width.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from pipeline.ops.layout import Layout, Mass
from pipeline.packing.histories import Histories


@dataclass(frozen=True, kw_only=True)
class PrunedTokens:
    """`PrunedTokens` says which tokens are kept, and in which slots they lie afterwards."""

    source_O: Tensor  # int64: source token of each slot; arbitrary for empty slots
    slot_T: Tensor  # int64: the slot of each token; -1: it is dropped
    # int64: the position of each slot's token in its window before, arbitrary for empty slots; None: no block needs it
    position_O: Tensor | None
    taken_W: Tensor  # int64: tokens of each window that are kept, the slots that it fills
    capacity_W: Tensor  # int64: slots that each window has
    kept_NS: Tensor  # bool: whether each token of the histories is kept; packed order
    longest: int  # slots of the longest window, or a bound of them
    reach: int  # positions of the longest window before, or a bound of them

    def layout(self) -> Layout:
        """Return the layout of the self-attention of the kept tokens."""
        return Layout.packed(
            self.taken_W, self.longest, capacities_W=self.capacity_W, positions_S=self.position_O, reach=self.reach
        )


class TokenPruner(Protocol):
    """A `TokenPruner` shortens the encoder's sequences between two blocks (strategies/rastp/)."""

    after_layer: int  # how many blocks see all tokens
    mass: Mass | None  # which attention mass of the last of these blocks it needs
    pad_to: int  # encoder positions of every window, also of packed ones, where padding matters to the pruner; else 0
    at_eval: bool  # whether it prunes also when the model does not train
    keep_positions: bool  # later blocks get the position bias of the original positions; otherwise none

    def size(self, items_W: np.ndarray, longest: int, pad_to: int) -> int:
        """Return the slots of all windows afterwards, computed on the host so that nothing waits for the device."""
        ...

    def __call__(
        self, h_Td: Tensor, mass_T: Tensor | None, histories: Histories, *, size: int, training: bool
    ) -> tuple[Tensor, PrunedTokens]:
        """Return the states that are kept, [O, d], and which they are.

        Args:
            mass_T: the attention mass that `mass` asks for.
            histories: their `pad_to` is what the encoder pads to.
            size: O, what `size` returns or more.
        """
        ...
