"""Compute the logits of all levels, and the sum of their cross-entropies, on a GPU that trains.

All is float32; a product is three products in tf32, which round less than one in float32 (docs/engine.md).

Shape legend: W windows, L levels, V codes of one level, d width of the model.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from pipeline.ops.triton.heads_kernels import (
    cross_entropy_gradient_kernel,
    cross_entropy_kernel,
    logits_kernel,
    states_gradient_kernel,
    weights_gradient_kernel,
)
from pipeline.ops.triton.precision import PRECISION

ROWS, COLUMNS, INNER = 32, 64, 64  # of a tile of a product
STRETCH = 128  # rows whose gradients of the weights one program sums, at least
STRETCHES = 16  # at most
LOSS_ROWS = 4  # of one program
Score = Literal["entropy", "loss"]


def level_logits(h_WLd: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the logits of each level, float32 [W, V].

    Args:
        h_WLd: float32; each level has a state of its own.
        weights: float32 [V, d] of each level.
    """
    logits: tuple[Tensor, ...] = _LevelLogits.apply(h_WLd, *weights)  # type: ignore[no-untyped-call]  # torch's
    return list(logits)


def losses_of_levels(logits: Sequence[Tensor], codes_WL: Tensor) -> Tensor:
    """Return the sum of the levels' cross-entropies of each window, float32 [W].

    Args:
        logits: float32 [W, V] of each level.
        codes_WL: int64, the code of each level.
    """
    loss_W: Tensor
    loss_W, _ = _CrossEntropies.apply(codes_WL, None, None, *logits)  # type: ignore[no-untyped-call]  # torch's `apply`
    return loss_W


def scored_losses_of_levels(
    logits: Sequence[Tensor], codes_WL: Tensor, weights_WL: Tensor, score: Score
) -> tuple[Tensor, Tensor]:
    """Return the weighed sum of the levels' cross-entropies of each window, [W], and the levels' scores, [L, W].

    Both are float32, and no gradient flows through the scores.

    Args:
        logits: float32 [W, V] of each level.
        codes_WL: int64, the code of each level.
        weights_WL: float32, of each cross-entropy.
        score: what is the score of a level, never below 0.
    """
    loss_W: Tensor
    scores_LW: Tensor
    loss_W, scores_LW = _CrossEntropies.apply(codes_WL, weights_WL, score, *logits)  # type: ignore[no-untyped-call]
    return loss_W, scores_LW


class _LevelLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_WLd: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        h_WLd, weights = h_WLd.contiguous(), tuple(weight.contiguous() for weight in weights)
        rows, _, width = h_WLd.shape
        widths = tuple(len(weight) for weight in weights)
        logits = tuple(h_WLd.new_empty(rows, codes) for codes in widths)
        grid = (triton.cdiv(rows, ROWS), len(widths), triton.cdiv(max(widths), COLUMNS))
        logits_kernel[grid](h_WLd, weights, logits, rows, width, widths, PRECISION, ROWS, COLUMNS, INNER)
        ctx.save_for_backward(h_WLd, *weights)
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        h_WLd, *weights = ctx.saved_tensors
        rows, levels, width = h_WLd.shape
        widths = tuple(len(weight) for weight in weights)
        dlogits = tuple(x.contiguous() for x in grads)
        dh_WLd = torch.empty_like(h_WLd)
        grid = (triton.cdiv(rows, ROWS), levels, triton.cdiv(width, COLUMNS))
        states_gradient_kernel[grid](
            dlogits, tuple(weights), dh_WLd, rows, width, widths, PRECISION, ROWS, COLUMNS, INNER
        )
        stretch = max(STRETCH, triton.cdiv(triton.cdiv(rows, STRETCHES), INNER) * INNER)
        stretches = triton.cdiv(rows, stretch)
        first = (0, *accumulate(widths))
        sums = h_WLd.new_empty(stretches, first[-1], width)
        grid = (triton.cdiv(max(widths), ROWS), levels, stretches)
        weights_gradient_kernel[grid](
            dlogits, h_WLd, sums, rows, stretch, width, widths, first, PRECISION, ROWS, COLUMNS, INNER
        )
        return dh_WLd, *torch.split(sums.sum(0), list(widths))


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, codes_WL: Tensor, weights_WL: Tensor | None, score: Score | None, *logits: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        codes_WL, logits = codes_WL.contiguous(), tuple(x.contiguous() for x in logits)
        weights_WL = None if weights_WL is None else weights_WL.contiguous()
        rows = len(codes_WL)
        widths = tuple(x.shape[1] for x in logits)
        loss_W, lse_LW = logits[0].new_empty(rows), logits[0].new_empty(len(logits), rows)
        scores_LW = torch.empty_like(lse_LW) if score else None
        columns = triton.next_power_of_2(max(widths))
        cross_entropy_kernel[triton.cdiv(rows, LOSS_ROWS),](
            logits, codes_WL, weights_WL, lse_LW, loss_W, scores_LW, rows, score, widths, LOSS_ROWS, columns
        )
        ctx.weights_WL = weights_WL  # no gradient flows through the weights
        ctx.save_for_backward(codes_WL, lse_LW, *logits)
        if scores_LW is not None:
            ctx.mark_non_differentiable(scores_LW)
        return loss_W, scores_LW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes_WL, lse_LW, *logits = ctx.saved_tensors
        dloss_W, *_ = grads
        widths = tuple(x.shape[1] for x in logits)
        dlogits = tuple(torch.empty_like(x) for x in logits)
        columns = triton.next_power_of_2(max(widths))
        grid = (triton.cdiv(len(codes_WL), LOSS_ROWS), len(widths))
        cross_entropy_gradient_kernel[grid](
            tuple(logits),
            codes_WL,
            ctx.weights_WL,
            lse_LW,
            dloss_W,
            dlogits,
            len(codes_WL),
            dloss_W.stride(0),
            ctx.weights_WL is not None,
            widths,
            LOSS_ROWS,
            columns,
        )
        return None, None, None, *dlogits
