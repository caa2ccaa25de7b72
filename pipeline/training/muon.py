"""Train the matrices of a network's layers by Muon, and all else by AdamW, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) does not move a matrix by its gradient's momentum,
but by the nearest matrix whose singular values are all about 1: directions that gradients seldom take count as much as
the others. The step's size is that of AdamW (Liu et al. 2025, arXiv 2502.16982, section 2.2), so that one learning rate
serves both.

Shape legend: n matrices of one shape, R rows and C columns, R at most C.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
# Of the polynomial x -> a x + b x^3 + c x^5, which takes singular values in (0, 1] to about 0.7 to 1.2 when iterated
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SCALE = 0.2  # root mean square of AdamW's step, in learning rates
TINY = 1e-7  # so that a gradient of zeros remains one


class Muon(torch.optim.Optimizer):
    """`Muon` moves the matrices of its first parameter group by Muon, and those of all others by AdamW.

    Args:
        matrices: what Muon trains; each has two dimensions.
        others: parameter groups of AdamW, at least one.
        rate: learning rate of both; a tensor where steps are recorded as a CUDA graph.
        weight_decay: decoupled decay of the matrices.
        recorded: whether steps are recorded.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        others: Sequence[dict[str, Any]],
        rate: float | Tensor,
        weight_decay: float,
        recorded: bool,
    ):
        self._adamw = torch.optim.AdamW(others, rate, fused=True, capturable=recorded)
        first = {"params": list(matrices), "weight_decay": weight_decay}
        super().__init__([first, *self._adamw.param_groups], self._adamw.defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's may return a loss
        """Move all parameters that have a gradient."""
        first, *others = self.param_groups
        # Groups and state are one dictionary for both, also after a state was loaded, which makes new ones.
        self._adamw.param_groups, self._adamw.state = others, self.state
        self._adamw.step(closure)
        self._step(first)

    def _step(self, group: dict[str, Any]) -> None:
        matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
        if not matrices:
            return
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum"] for matrix in matrices]
        gradients = [matrix.grad for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        looking_ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's momentum
        directions = _orthogonal(list(looking_ahead))
        rate = group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
        torch._foreach_mul_(directions, [SCALE * max(matrix.shape) ** 0.5 for matrix in matrices])
        torch._foreach_mul_(directions, rate)
        torch._foreach_sub_(matrices, directions)


def _orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """Return for each matrix a near one whose singular values are about 1; those of one shape are computed together.

    A matrix and a transposed one of the same sides have one shape here.
    """
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        alike[min(matrix.shape), max(matrix.shape)].append(i)
    results = list(matrices)
    for indices in alike.values():
        tall = [matrices[i].shape[0] > matrices[i].shape[1] for i in indices]
        wide_nRC = torch.stack([matrices[i].T if t else matrices[i] for i, t in zip(indices, tall, strict=True)])
        for i, t, result in zip(indices, tall, newton_schulz(wide_nRC).unbind(), strict=True):
            results[i] = (result.T if t else result).to(
                matrices[i].dtype, copy=True, memory_format=torch.contiguous_format
            )
    return results


def newton_schulz(x_nRC: Tensor) -> Tensor:
    """Bring all singular values near 1 by a polynomial of the matrix: five steps of Newton and Schulz, [n, R, C].

    On a GPU in bfloat16, whose rounding is small beside the 0.7 to 1.2 that the polynomial aims at.
    """
    a, b, c = COEFFICIENTS
    x_nRC = x_nRC / (torch.linalg.matrix_norm(x_nRC, keepdim=True) + TINY)  # then none is above 1
    if x_nRC.is_cuda:
        x_nRC = x_nRC.bfloat16()
    for _ in range(ITERATIONS):
        squared_nRR = x_nRC @ x_nRC.mT
        polynomial_nRR = torch.baddbmm(squared_nRR, squared_nRR, squared_nRR, beta=b, alpha=c)
        x_nRC = torch.baddbmm(x_nRC, polynomial_nRR, x_nRC, beta=a)
    return x_nRC
