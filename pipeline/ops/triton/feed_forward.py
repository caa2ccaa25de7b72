"""Compute the layers of a feed-forward on a GPU that trains: ReLU, dropout and their gradients inside the products.

Of a hidden layer only its output is held for backward: it is positive exactly where its input was and was not dropped.

Written for Hopper, correct on any CUDA GPU that Triton supports.

Shape legend: T tokens; local: K inputs and N outputs of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pipeline.ops.triton.feed_forward_kernels import product_kernel
from pipeline.ops.triton.launch import Call, compile_variants

BM, BK = 128, 64  # rows and inputs of a tile


def relu_layers(x_Td: Tensor, weights: Sequence[Tensor], dropout: float) -> Tensor:
    """Compute the last layer of dropout(relu(layer(...))): every layer but the last has ReLU and dropout behind it.

    Args:
        x_Td: contiguous, in the type in which all is computed.
        weights: [N, K] of each layer, in that type; K and N are multiples of 8.
        dropout: share of outputs dropped.
    """
    seeds = torch.randint(2**31 - 1, (len(weights) - 1,), device=x_Td.device, dtype=torch.int32)
    out_Td: Tensor = _forward_op(x_Td, list(weights), seeds, dropout)[0]
    return out_Td


@dataclass(frozen=True)
class _Product:
    """A product of rows [M, K] with a layer's weight, and what follows it.

    y_MN: None in forward. In backward the outputs of the layer whose gradient is computed.
    """

    a_MK: Tensor
    weight: Tensor
    seed: Tensor
    dropout: float
    y_MN: Tensor | None = None

    def call(self, c_MN: Tensor) -> Call:
        """Return how the kernel is launched to write the product to `c_MN`."""
        a, backward = self.a_MK, self.y_MN is not None
        chips, memory = 2, 0  # Triton's interpreter
        if a.is_cuda:
            chip = torch.cuda.get_device_properties(a.device)
            chips, memory = chip.multi_processor_count, chip.shared_memory_per_multiprocessor
        # What measured best on an H200; other chips have less shared memory.
        large = memory > 200_000
        rows, outputs = c_MN.shape
        columns = min(256 if large else 128, max(32, triton.next_power_of_2(outputs)))
        half = [BM, columns // 2]
        positional = (
            TensorDescriptor.from_tensor(a, [BM, BK]),
            TensorDescriptor.from_tensor(self.weight, [BK, columns] if backward else [columns, BK]),
            TensorDescriptor.from_tensor(c_MN, half),
            TensorDescriptor.from_tensor(c_MN if self.y_MN is None else self.y_MN, half),
            self.seed,
            int(self.dropout * 2**32),
            1 / (1 - self.dropout),
            rows,
        )
        named = {
            "N": outputs,
            "K": a.shape[1],
            "BACKWARD": backward,
            "DROPOUT": self.dropout > 0,
            "BM": BM,
            "BN": columns,
            "BK": BK,
            "num_warps": 8,
            "num_stages": (3 if backward else 4) if large else 2,
        }
        # One program for each multiprocessor: a tile takes most of its shared memory.
        return (min(chips, triton.cdiv(rows, BM) * triton.cdiv(outputs, columns)), 1), positional, named

    def run(self) -> Tensor:
        """Return the product, [M, N]."""
        c_MN = self.a_MK.new_empty(len(self.a_MK), self.weight.shape[0 if self.y_MN is None else 1])
        grid, positional, named = self.call(c_MN)
        product_kernel[grid](*positional, **named)
        return c_MN


@torch.library.custom_op("sidpipe::relu_layers", mutates_args=())
def _forward_op(x: Tensor, weights: list[Tensor], seeds: Tensor, dropout: float) -> tuple[Tensor, list[Tensor]]:
    """Return the output, and what each hidden layer gave."""
    if x.is_cuda:
        _compile(x, weights, seeds, dropout)
    hidden: list[Tensor] = []
    for weight, seed in zip(weights[:-1], seeds.split(1), strict=True):
        x = _Product(x, weight, seed, dropout).run()
        hidden.append(x)
    return x @ weights[-1].T, hidden


def _compile(x: Tensor, weights: list[Tensor], seeds: Tensor, dropout: float) -> None:
    """Compile the kernels of forward and backward together, before the first of them runs."""
    calls = list[Call]()
    for layer, after in pairwise(weights):
        y = x.new_empty(len(x), len(layer))
        calls.append(_Product(x, layer, seeds, dropout).call(y))
        calls.append(_Product(x.new_empty(len(x), len(after)), after, seeds, dropout, y).call(y))
        x = y
    compile_variants(product_kernel, x, calls)


@_forward_op.register_fake
def _forward_shapes(x: Tensor, weights: list[Tensor], seeds: Tensor, dropout: float) -> tuple[Tensor, list[Tensor]]:
    """Return empty results of the right shapes and types, for torch.compile."""
    out, *hidden = (x.new_empty(x.shape[0], weight.shape[0]) for weight in (weights[-1], *weights[:-1]))
    return out, hidden


@torch.library.custom_op("sidpipe::relu_layers_backward", mutates_args=())
def _backward_op(
    dout: Tensor, x: Tensor, weights: list[Tensor], hidden: list[Tensor], seeds: Tensor, dropout: float
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of the input and of each weight."""
    gradient, dweights = dout, list[Tensor]()
    for weight, inputs in zip(weights[:0:-1], hidden[::-1], strict=True):
        dweights.append(gradient.T @ inputs)
        gradient = _Product(gradient, weight, seeds, dropout, inputs).run()
    dweights.append(gradient.T @ x)
    return gradient @ weights[0], dweights[::-1]


@_backward_op.register_fake
def _backward_shapes(
    dout: Tensor, x: Tensor, weights: list[Tensor], hidden: list[Tensor], seeds: Tensor, dropout: float
) -> tuple[Tensor, list[Tensor]]:
    """Return empty results of the right shapes and types, for torch.compile."""
    return x.new_empty(x.shape), [weight.new_empty(weight.shape) for weight in weights]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    x, weights, seeds, ctx.dropout = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(x, seeds, *weights, *output[1])
    ctx.mark_non_differentiable(*output[1])


def _gradients(ctx: Any, dout: Tensor, _hidden: list[Tensor]) -> tuple[Tensor | list[Tensor] | None, ...]:
    """Return a gradient for each argument of `_forward_op`."""
    x, seeds, *others = ctx.saved_tensors
    weights, hidden = others[: ctx.layers], others[ctx.layers :]
    dx, dweights = _backward_op(dout.contiguous(), x, weights, hidden, seeds, ctx.dropout)
    return dx, dweights, None, None


_forward_op.register_autograd(_gradients, setup_context=_save_for_backward)
