"""Update all parameters by Adam or AdamW in one kernel, which also clears the gradients and moves averaged weights.

torch's fused optimizer, its clearing of gradients and an average are nine kernels, of which each walks over all
parameters again, and the last blocks of each wait alone.

Shape legend: local: N tensors, C chunks of BLOCK elements of one tensor, K kinds of tensors: parameter, gradient, both
moments, average.
"""
# Triton has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
KINDS = 5


@triton.jit
def _at(addresses_ptr, tensor, tensors, kind, i):
    """Return pointers to the elements i of a tensor; torch aligns what it allocates."""
    address = tl.load(addresses_ptr + kind * tensors + tensor)
    return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16) + i


@triton.jit
def _load(at, real, WHOLE: tl.constexpr):
    """Load a chunk; without a mask where it is whole, so that a thread loads four numbers at once."""
    return tl.load(at) if WHOLE else tl.load(at, mask=real, other=0.0)


@triton.jit
def _store(at, x, real, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(at, x)
    else:
        tl.store(at, x, mask=real)


@triton.jit
def _update_chunk(
    addresses_ptr,
    tensor,
    tensors,
    i,
    size,
    rate,
    decay,
    step_ptr,
    weight_ptr,
    beta1,
    beta2,
    epsilon,
    log_beta1,
    log_beta2,
    DECOUPLED: tl.constexpr,
    AVERAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    real = i < size
    p_at, g_at = _at(addresses_ptr, tensor, tensors, 0, i), _at(addresses_ptr, tensor, tensors, 1, i)
    m_at, v_at = _at(addresses_ptr, tensor, tensors, 2, i), _at(addresses_ptr, tensor, tensors, 3, i)
    p, g = _load(p_at, real, WHOLE), _load(g_at, real, WHOLE)
    m, v = _load(m_at, real, WHOLE), _load(v_at, real, WHOLE)
    # In float64: 1 - beta ** step of the first steps would lose digits
    step = tl.load(step_ptr).to(tl.float64)
    correction1 = (1.0 - tl.exp(step * log_beta1)).to(tl.float32)
    correction2 = (1.0 - tl.exp(step * log_beta2)).to(tl.float32)
    if DECOUPLED:
        p -= rate * decay * p
    else:
        g += decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    p -= rate / correction1 * m / (tl.sqrt(v) / tl.sqrt(correction2) + epsilon)
    _store(p_at, p, real, WHOLE)
    _store(m_at, m, real, WHOLE)
    _store(v_at, v, real, WHOLE)
    _store(g_at, tl.zeros([BLOCK], tl.float32), real, WHOLE)
    if AVERAGE:
        average_at = _at(addresses_ptr, tensor, tensors, 4, i)
        average = _load(average_at, real, WHOLE)
        _store(average_at, average + tl.load(weight_ptr) * (p - average), real, WHOLE)


@triton.jit
def adam_kernel(
    addresses_ptr,
    chunks_ptr,
    sizes_ptr,
    decays_ptr,
    rate_ptr,
    step_ptr,
    weight_ptr,
    tensors,
    beta1,
    beta2,
    epsilon,
    log_beta1,
    log_beta2,
    DECOUPLED: tl.constexpr,
    AVERAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update one chunk. addresses [K, N]; chunks [C, 2]: tensor, first element; sizes and decays [N]."""
    chunk = tl.program_id(0)
    tensor, first = tl.load(chunks_ptr + 2 * chunk), tl.multiple_of(tl.load(chunks_ptr + 2 * chunk + 1), BLOCK)
    i, size = first + tl.arange(0, BLOCK), tl.load(sizes_ptr + tensor)
    rate, decay = tl.load(rate_ptr), tl.load(decays_ptr + tensor)
    if first + BLOCK <= size:
        _update_chunk(
            addresses_ptr, tensor, tensors, i, size, rate, decay, step_ptr, weight_ptr, beta1, beta2, epsilon,
            log_beta1, log_beta2, DECOUPLED, AVERAGE, BLOCK, True,
        )  # fmt: skip
    else:
        _update_chunk(
            addresses_ptr, tensor, tensors, i, size, rate, decay, step_ptr, weight_ptr, beta1, beta2, epsilon,
            log_beta1, log_beta2, DECOUPLED, AVERAGE, BLOCK, False,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The tensors of an update, on their device."""

    key: tuple[int, ...]  # their addresses
    addresses: Tensor  # int64 [K, N]
    chunks: Tensor  # int32 [C, 2]
    sizes: Tensor  # int32 [N]
    decays: Tensor  # float32 [N]
    steps: list[Tensor]


class AdamKernel:
    """`AdamKernel` does what the `step` and `zero_grad` of a `torch.optim.Adam` or `AdamW` do, whose state it uses.

    Parameters are float32 and contiguous. The learning rate is a tensor, the same one in all groups. One step corrects
    the moments of all parameters: each that has a gradient had one in every update before, too.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.decoupled = isinstance(optimizer, torch.optim.AdamW)
        self._table: _Table | None = None

    @torch.no_grad()
    def update(self, averaged: Sequence[tuple[Tensor, Tensor]] = (), weight: Tensor | None = None) -> None:
        """Apply the gradients and clear them.

        Args:
            averaged: parameters and their averages, which move towards them.
            weight: scalar, the weight of a parameter in its average.

        Raises:
            ValueError: some parameters were updated more often than others.
        """
        table = self._made(dict(averaged))
        if not table.steps:
            return
        torch._foreach_add_(table.steps, 1)
        group = self.optimizer.param_groups[0]
        (beta1, beta2), rate = group["betas"], group["lr"]
        adam_kernel[len(table.chunks),](
            table.addresses,
            table.chunks,
            table.sizes,
            table.decays,
            rate,
            table.steps[0],
            rate if weight is None else weight,
            len(table.sizes),
            beta1,
            beta2,
            group["eps"],
            math.log(beta1),
            math.log(beta2),
            self.decoupled,
            weight is not None,
            BLOCK,
            num_warps=4,
        )

    def _made(self, averages: dict[Tensor, Tensor]) -> _Table:
        """Return the table of the tensors as they lie now; it is made anew only when one of them has moved."""
        columns, decays, steps = list[list[Tensor]](), list[float](), list[Tensor]()
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.optimizer.state[parameter]
                if not state:  # as torch's own first step makes it
                    state["step"] = torch.zeros((), device=parameter.device)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                average = averages.get(parameter, parameter)
                columns.append([parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], average])
                decays.append(group["weight_decay"])
                steps.append(state["step"])
        key = tuple(x.data_ptr() for column in columns for x in column)
        if self._table is None or self._table.key != key:
            _check_steps(steps)
            device = self.optimizer.param_groups[0]["lr"].device
            addresses = torch.tensor(key, dtype=torch.int64).view(len(columns), KINDS).T.contiguous()
            sizes = [column[0].numel() for column in columns]
            chunks = [(number, first) for number, size in enumerate(sizes) for first in range(0, size, BLOCK)]
            self._table = _Table(
                key=key,
                addresses=addresses.to(device),
                chunks=torch.tensor(chunks, dtype=torch.int32, device=device),
                sizes=torch.tensor(sizes, dtype=torch.int32, device=device),
                decays=torch.tensor(decays, device=device),
                steps=steps,
            )
        self._table.steps[:] = steps
        return self._table


def _check_steps(steps: Sequence[Tensor]) -> None:
    """Refuse parameters whose moments differ in the number of updates; this waits for the device."""
    found = sorted(set(torch.stack(list(steps)).tolist())) if steps else []
    if len(found) > 1:
        raise ValueError(
            f"the kernel of Adam corrects all parameters by one step, and theirs are {found[0]:.0f} to "
            f"{found[-1]:.0f}: a parameter has a gradient in every update or in none"
        )
