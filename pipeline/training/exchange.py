"""Add up gradients over processes while the backward pass still runs.

Parameters form buckets in the order in which the first backward pass finished their gradients. Each gradient is a view
of its bucket's flat tensor. As soon as a bucket's last gradient is there, the sum of that tensor over the processes
begins, while the pass goes on with the layers before. `sum_after_pass` is the plain form: one sum, after the pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.distributed import Pending, World

BUCKET_BYTES = 4 * 2**20  # smaller ones cost more launches, larger ones leave more to exchange after the pass


def sum_after_pass(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Replace each parameter's gradient by its sum over processes, in one exchange of all gradients."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = world.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    sums = torch.split(flat, [gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(sums, gradients, strict=True)])


@dataclass
class _Bucket:
    """A bucket of parameters whose gradients are exchanged together.

    flat: the gradients end to end. views: of `flat`, one per parameter. ready: gradients of the running pass that came,
    by position in the bucket.
    """

    numbers: list[int]
    flat: Tensor
    views: list[Tensor]
    ready: dict[int, Tensor] = field(default_factory=dict)

    def add_ready(self) -> None:
        """Add the gradients that came to `flat`."""
        if self.ready:
            torch._foreach_add_([self.views[position] for position in self.ready], list(self.ready.values()))
            self.ready.clear()


class GradientExchange:
    """Compute the gradients of a loss on every process, and replace the last part's by sums over processes.

    The processes must compute the same parameters' gradients in each step. Their order within a pass may differ,
    because the first process decides the buckets and buckets are exchanged in one order.

    Args:
        parameters: those of the model that are trained.
        world: the processes, two at least.
        bucket_bytes: size of a bucket; a larger parameter has one of its own.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: World, bucket_bytes: int = BUCKET_BYTES):
        self.parameters = list(parameters)
        self.world = world
        self.bucket_bytes = bucket_bytes
        self._buckets: list[_Bucket] = []
        self._home: dict[int, tuple[_Bucket, int]] = {}  # parameter number -> its bucket, and its position there
        self._running = False  # whether a pass of `backward` runs: hooks are also called in other passes
        self._last = False  # whether the running pass is the last one of its step
        self._pending: list[Pending] = []  # exchanges of the running pass, by bucket
        self._homeless: dict[int, Tensor] = {}  # gradients of parameters that have no bucket yet, in order of readiness
        self._unseen: set[int] = set()  # parameters that had no gradient when the step began, and got none since
        for number, parameter in enumerate(self.parameters):
            parameter.register_hook(partial(self._came, number))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of `loss` to each parameter's `grad`.

        Args:
            loss: a scalar.
            last: this is the last part of the step; each `grad` is then the sum over all parts and processes.
        """
        self._attach()
        self._last = last
        self._running = True
        try:
            torch.autograd.grad(loss, self.parameters, allow_unused=True)
        finally:
            self._running = False
        if self._homeless:
            self._settle()
        for bucket in self._buckets[len(self._pending) :]:
            bucket.add_ready()
            if last:
                self._send(bucket)
        for pending in self._pending:
            pending.wait()
        self._pending.clear()
        if last:
            # As in one process, the optimizer passes over a parameter that the loss does not depend on.
            for number in self._unseen:
                self.parameters[number].grad = None
            self._unseen.clear()

    def _came(self, number: int, gradient: Tensor | None) -> None:
        """Note that a parameter's gradient is finished, and exchange the buckets that are full by now."""
        if not self._running or gradient is None:
            return
        self._unseen.discard(number)
        if number not in self._home:
            self._homeless[number] = gradient
            return
        bucket, position = self._home[number]
        bucket.ready[position] = gradient
        # In the order of buckets: every process must begin the same exchanges in the same order.
        while self._last and len(self._pending) < len(self._buckets):
            following = self._buckets[len(self._pending)]
            if len(following.ready) < len(following.numbers):
                break
            following.add_ready()
            self._send(following)

    def _send(self, bucket: _Bucket) -> None:
        self._pending.append(self.world.begin_sum(bucket.flat))

    def _attach(self) -> None:
        """Let gradients that an update has cleared be zeros in their buckets again."""
        for bucket in self._buckets:
            for number, view in zip(bucket.numbers, bucket.views, strict=True):
                if self.parameters[number].grad is None:
                    self.parameters[number].grad = view.zero_()
                    self._unseen.add(number)

    def _settle(self) -> None:
        """Make buckets for parameters that had none, and move their gradients there."""
        found, self._homeless = self._homeless, {}
        size = 0
        groups: list[list[int]] = []
        for number in self._agreed(list(found)):
            bytes_of_one = self.parameters[number].numel() * self.parameters[number].element_size()
            kind = (self.parameters[number].dtype, self.parameters[number].device)
            first = self.parameters[groups[-1][0]] if groups else None
            if first is None or size + bytes_of_one > self.bucket_bytes or kind != (first.dtype, first.device):
                groups.append([])
                size = 0
            groups[-1].append(number)
            size += bytes_of_one
        for numbers in groups:
            parameters = [self.parameters[number] for number in numbers]
            flat = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
            parts = torch.split(flat, [parameter.numel() for parameter in parameters])
            views = [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]
            bucket = _Bucket(numbers, flat, views)
            self._buckets.append(bucket)
            for position, (number, view) in enumerate(zip(numbers, views, strict=True)):
                self.parameters[number].grad = view
                self._home[number] = (bucket, position)
                if number in found:
                    bucket.ready[position] = found[number]

    def _agreed(self, numbers: list[int]) -> list[int]:
        """Return these parameters in the first process's order; those that another one found alone come last."""
        # An order 2 0 of three parameters -> turns 2 0 1, where 0 means: not found
        count = len(self.parameters)
        turns = torch.zeros(2, count, dtype=torch.int64, device=self.parameters[0].device)
        for turn, number in enumerate(numbers, 1):
            turns[0, number] = turn if self.world.leads else 0
            turns[1, number] = 1
        by_first, found = self.world.sum(turns).tolist()
        chosen = [number for number in range(count) if found[number]]
        return sorted(chosen, key=lambda number: (by_first[number] or count + 1, number))
