"""What one process does in an optimizer step: gradients of its batches, then the update. On a GPU both are recorded.

It knows of no data, schedule or other processes: `loop.Trainer` has those, and benchmarks need none.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.cuda_graphs import CudaGraphed, can_record
from pipeline.packing.batch import Batch
from pipeline.strategies.base import Strategy
from pipeline.training.config import TrainConfig
from pipeline.training.optimizer import Average, autocast, backward, build_optimizer, update

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class MicroBatch:
    """What one process computes gradients of at once: the argument of the recorded function."""

    batch: Batch
    share: Tensor  # of a sample's loss in the step's


def records(config: TrainConfig, device: torch.device) -> bool:
    """Whether steps are compiled and recorded as CUDA graphs."""
    return config.compile and can_record(device)


class OptimizerStep:
    """A model and its optimizer.

    Args:
        average: follows each update.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, strategy: Strategy, average: Average | None = None):
        self.config, self.model, self.strategy, self.average = config, model, strategy, average
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, config)
        self.records = records(config, self.device)
        self._gradients_of: Callable[[MicroBatch], Tensor] = self._gradients
        self._update_all: Callable[[None], None] = self._update
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._recorded: list[CudaGraphed] = []
        if self.records:
            network: Any = model
            network.compile_training()
            self._gradients_of = CudaGraphed(self._gradients, lambda part: network.sizes(part.batch.histories))
            self._update_all = CudaGraphed(self._update)
            self._recorded = [self._gradients_of, self._update_all]

    def gradients(self, batch: Batch, share: Tensor) -> Tensor:
        """Add the gradients of one part of a step to those at hand.

        Args:
            share: a number, the share of a sample's loss in the step's.

        Returns:
            The loss of the part, summed over samples; the next call may overwrite it.
        """
        return self._gradients_of(MicroBatch(batch, share))

    def update(self) -> None:
        """Apply the gathered gradients and clear them."""
        self._update_all(None)

    @property
    def warm_seconds(self) -> float:
        """Spent so far on calls that compiled or recorded."""
        return sum(recorded.warm_seconds for recorded in self._recorded)

    def _gradients(self, part: MicroBatch) -> Tensor:
        with autocast(self.config, self.device):
            loss = self.strategy.loss(self.model, part.batch)
        backward(loss * part.share, self._parameters)
        return loss.detach()

    def _update(self, _: None) -> None:
        update(self.optimizer, self.config)
        if self.average:
            self.average.update(self.model)
