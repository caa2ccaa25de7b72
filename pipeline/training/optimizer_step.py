"""Compute one process's share of an optimizer step: gradients of its batches, then the update. On a GPU both are
recorded as CUDA graphs.

Data and schedule are not known here: `loop.Trainer` has those, and benchmarks need none.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.cuda_graphs import CudaGraphed, can_record
from pipeline.distributed import World
from pipeline.ops.adam import adam_in_one_kernel
from pipeline.packing.backbone import Backbone
from pipeline.packing.batch import Batch
from pipeline.strategies.base import Strategy
from pipeline.training.config import TrainConfig
from pipeline.training.exchange import GradientExchange, sum_after_pass
from pipeline.training.optimizer import Average, autocast, backward, build_optimizer, clip, update

# Kinds of devices that exchange gradients during the pass. Between two GPUs, where the recording would hold the
# exchanges, that form has not run yet; the sum after the pass has.
DURING_PASS = ("cpu",)


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch is one part of a step: a batch and the share of a sample's loss.

    It is what one process computes gradients of at once, and the argument of the recorded function.
    """

    batch: Batch
    share: Tensor  # scalar: factor of a sample's loss in the loss of the step
    last: bool = True  # no other part of the step follows in this process


ComputeGradients = Callable[[MicroBatch], Tensor]
ApplyUpdate = Callable[[None], None]


def records(config: TrainConfig, device: torch.device) -> bool:
    """Return whether steps are compiled and recorded as CUDA graphs."""
    return config.compile and can_record(device)


class OptimizerStep:
    """Hold a model and its optimizer, and compute gradients and updates.

    Args:
        average: the averaged weights, which follow each update.
        world: the processes that add up their gradients.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Backbone,
        strategy: Strategy,
        average: Average | None = None,
        world: World | None = None,
    ):
        self.config = config
        self.model = model
        self.strategy = strategy
        self.average = average
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, config)
        self._adam = adam_in_one_kernel(self.optimizer)  # None: torch's optimizer updates
        self.records = records(config, self.device)
        # The two halves of a step: plain methods, or the same methods recorded.
        self._compute: ComputeGradients = self._gradients
        self._apply: ApplyUpdate = self._update
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._after: World | None = None  # sums up the gradients when the backward pass is over
        self._exchange: GradientExchange | None = None  # sums them up during the pass
        if world and world.size > 1:
            if self.device.type in DURING_PASS:
                self._exchange = GradientExchange(self._parameters, world)
            else:
                self._after = world
        self._recorded: list[CudaGraphed[MicroBatch, Tensor] | CudaGraphed[None, None]] = []
        if self.records:
            model.compile_training()
            # A recording of gradients also depends on numbers that are no tensors, such as the longest window.
            self._compute = CudaGraphed(self._gradients, lambda part: (part.last, model.sizes(part.batch.histories)))
            self._apply = CudaGraphed(self._update)
            self._recorded = [self._compute, self._apply]

    def gradients(self, batch: Batch, share: Tensor, *, last: bool = True) -> Tensor:
        """Add the gradients of one part of a step to the gradients of the parts before it.

        Args:
            batch: the part.
            share: scalar tensor, the factor of a sample's loss in the loss of the step.
            last: this is the process's last part of the step; gradients are then added up over processes, too.

        Returns:
            The loss of the part, summed over samples; the next call may overwrite it.
        """
        # One process exchanges nothing, so that one recording serves all parts.
        return self._compute(MicroBatch(batch, share, last or self._exchange is None))

    def update(self) -> None:
        """Sum up the gradients over processes, where no pass did, apply them and clear them."""
        if self._after:
            sum_after_pass(self._parameters, self._after)
        self._apply(None)

    def forget(self) -> None:
        """Free the recordings; NCCL ends only after the graphs that hold its exchanges."""
        for recorded in self._recorded:
            recorded.forget()

    @property
    def warm_seconds(self) -> float:
        """Return the seconds spent so far on calls that compiled or recorded."""
        return sum(recorded.warm_seconds for recorded in self._recorded)

    def _gradients(self, part: MicroBatch) -> Tensor:
        with autocast(self.config, self.device):
            loss = self.strategy.loss(self.model, part.batch)
        if self._exchange:
            self._exchange.backward(loss * part.share, last=part.last)
        else:
            backward(loss * part.share, self._parameters)
        return loss.detach()

    def _update(self, _: None) -> None:
        if self._adam is not None:
            clip(self.optimizer, self.config)
            averaged = self.average.pairs(self.model) if self.average else []
            self._adam.update(averaged, self.average.weight if self.average else None)
            return
        update(self.optimizer, self.config)
        if self.average:
            self.average.update(self.model)
