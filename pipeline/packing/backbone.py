"""Declare what every network offers: it trains on packed histories, and decodes level by level.

Shape legend: W windows, N items of all windows, U items whose codes are asked for, S tokens of one item, L code levels,
K beam width, V codes of one level.
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
    """A `Backbone` is a network over histories; `backbones/` has those of the field, `strategies/intrr/` wraps them.

    It is an abstract module, not a typing.Protocol: code that trains, ranks or saves a network needs it as a module
    (`eval`, `to`, `parameters`) and as a decoder at once. No type says "a module that also fits this protocol", so that
    all such code would need casts.
    """

    catalogue: Catalogue  # on the network's device; its widths are those of the heads
    config: Any  # `backbones.config.BackboneConfig`, which this layer must not import
    pruner: TokenPruner | None = None  # set by a strategy, on a network with an encoder
    action_sizes: tuple[int, ...] = ()  # values of each column of actions, for a network that reads them
    undecayed: frozenset[str] = frozenset()  # names of parameters that weight decay leaves alone

    @property
    def wants_times(self) -> bool:
        """Tell whether histories must say when each item came."""
        return bool(self.config.wants_times)

    @property
    @abstractmethod
    def token_names(self) -> Sequence[str]:
        """Return the names of an item's S tokens in a history."""

    @abstractmethod
    def forward(self, histories: Histories, *args: Any, **kwargs: Any) -> Any:
        """Compute the output of a training step; the strategy that built the network knows arguments and result."""

    @abstractmethod
    def compile_training(self) -> None:
        """Compile what training repeats; compilation runs at the first batch and serves batches of every size."""

    @abstractmethod
    def sizes(self, histories: Histories) -> tuple[int, ...]:
        """Return the numbers that a step over `histories` depends on, beside the shapes of its tensors."""

    @abstractmethod
    def begin(self, histories: Histories) -> Any:
        """Read the histories once, for all levels and beams, and return the state before the first level."""

    @abstractmethod
    def step(self, state: Any, beams_WK: Tensor | None = None, codes_WK: Tensor | None = None) -> tuple[Tensor, Any]:
        """Return the logits [W, K, V] of the next level, rows in packed order, and the state after this step.

        States never change, so that one can be continued in many ways. The first step takes no beams: K is 1.

        Args:
            state: what `begin` or the previous step returned.
            beams_WK: int64, which of the previous step's beams each beam continues.
            codes_WK: int64, the code that each beam appends.
        """

    def kept_tokens(self, histories: Histories, on_prune: Callable[[], None] | None = None) -> Tensor:
        """Return which tokens of each item the last block that reads histories sees in training, bool [N, S].

        Args:
            on_prune: called just before tokens are pruned; a network without a pruner never calls it.
        """
        items_N = histories.items_N
        return torch.ones(len(items_N), len(self.token_names), dtype=torch.bool, device=items_N.device)

    def code_shares(self, items_U: Tensor) -> list[Tensor] | None:
        """Return how much of each code of a level is in an item's vector: L tensors [U, V], rows sum to 1.

        None says that a history holds the codes themselves.
        """
        return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for the block; afterwards, also after an error, its mode is as before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def require_eval(model: nn.Module) -> None:
    """Refuse a model in training mode.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError("call model.eval() before decoding: dropout would make the ranking a lottery")
