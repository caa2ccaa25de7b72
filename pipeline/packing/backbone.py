"""What every network is to the rooms above: a module that trains on packed histories and decodes level by level.

Shape legend: W windows, N items of all windows, U distinct items, S tokens of one item, L code levels, K beams, V codes
of one level.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.catalogue import Catalogue
from pipeline.packing.histories import Histories
from pipeline.packing.pruning import TokenPruner


class Backbone(nn.Module, ABC):
    """A network over histories. `backbones/` has those of the field, `strategies/intrr/` one around them.

    An abstract module, not a typing.Protocol: who trains, ranks or saves a network needs it as a module (`eval`, `to`,
    `parameters`) and as a decoder at once. No type says "a module that also fits this protocol", so that every such
    place would need a cast.

    catalogue: on the network's device. Its widths are those of the heads.
    config: the `backbones.config.BackboneConfig`, a room that this one does not know.
    pruner: set by a strategy, on a network with an encoder.
    """

    catalogue: Catalogue
    config: Any
    pruner: TokenPruner | None = None

    @property
    def wants_times(self) -> bool:
        """Whether histories must say when each item came."""
        return bool(self.config.wants_times)

    @property
    @abstractmethod
    def token_names(self) -> Sequence[str]:
        """Names of an item's S tokens in a history."""

    @abstractmethod
    def forward(self, histories: Histories, *args: Any, **kwargs: Any) -> Any:
        """What a training step computes; the strategy that built the network knows with which arguments."""

    @abstractmethod
    def compile_training(self) -> None:
        """Compile what training repeats, at its first batch and for batches of every size."""

    @abstractmethod
    def sizes(self, histories: Histories) -> tuple[int, ...]:
        """The numbers that, beside the shapes of its tensors, a step over `histories` depends on."""

    @abstractmethod
    def begin(self, histories: Histories) -> Any:
        """The state of a search before its first level: the histories are read once, for all levels and beams."""

    @abstractmethod
    def step(self, state: Any, beams_WK: Tensor | None = None, codes_WK: Tensor | None = None) -> tuple[Tensor, Any]:
        """Logits [W, K, V] of the next level, rows in packed order, and the state after it. States never change, so
        that one can be continued in many ways. The first step takes no beams: K is 1.

        Args:
            beams_WK: int64, which of the previous step's beams each beam continues.
            codes_WK: int64, the code that it appends.
        """

    def kept_tokens(self, histories: Histories, on_prune: Callable[[], None] | None = None) -> Tensor:
        """bool [N, S]: which tokens of each item the last block that reads histories sees when the network trains.

        Args:
            on_prune: called where tokens are dropped, just before they are.
        """
        items_N = histories.items_N
        return torch.ones(len(items_N), len(self.token_names), dtype=torch.bool, device=items_N.device)

    def code_shares(self, items_U: Tensor) -> list[Tensor] | None:
        """How much of each code of a level is in the vector of an item: L tensors [U, V], rows sum to 1. None where a
        history holds the codes themselves.
        """
        return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the while; the mode from before comes back, also after an error."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def require_eval(model: nn.Module) -> None:
    """Raises ValueError for a model in training mode."""
    if model.training:
        raise ValueError("call model.eval() before decoding: dropout would make the ranking a lottery")
