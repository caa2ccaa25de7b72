"""Compute the logits of all levels of a Semantic ID, and the sum of their cross-entropies.

Shape legend: X rows (windows, or positions of several), L levels, V codes of one level, d width of the model.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.entropy import entropy
from pipeline.ops.layout import uses_kernels

MOST_CODES = 4096  # of a level, of which a kernel takes all of a row at once


def logits_of_levels(h_XLd: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the logits [X, V] of each level, its state times its weights; in one kernel where a GPU trains.

    Args:
        h_XLd: a state for each level, in the type of the weights.
        weights: [V, d] of each level.
    """
    in_kernels = uses_kernels(h_XLd.device) and torch.is_grad_enabled()
    if in_kernels and _fits([h_XLd, *(weight.T for weight in weights)]):
        from pipeline.ops.triton.heads import level_logits

        return level_logits(h_XLd, weights)
    return [F.linear(h_XLd[:, level], weight) for level, weight in enumerate(weights)]


def cross_entropies(logits: Sequence[Tensor], codes_XL: Tensor) -> Tensor:
    """Return the sum of the levels' cross-entropies of each row, float32 [X].

    Args:
        logits: [X, V] of each level, or of each column of actions, which counts as a level here.
        codes_XL: int64, the code of each level.
    """
    if uses_kernels(codes_XL.device) and torch.is_grad_enabled() and _fits(logits):
        from pipeline.ops.triton import heads

        return heads.losses_of_levels(logits, codes_XL)
    by_level = [
        F.cross_entropy(logits_XV.float(), codes_XL[:, level], reduction="none")
        for level, logits_XV in enumerate(logits)
    ]
    return sum(by_level[1:], by_level[0])


def scored_cross_entropies(
    logits: Sequence[Tensor], codes_XL: Tensor, weights_XL: Tensor, first: Tensor, score: Literal["entropy", "loss"]
) -> tuple[Tensor, Tensor]:
    """Return a loss, float32 [], and the score of each code, float32 [L, X], through which no gradient flows.

    Args:
        logits: as `cross_entropies` takes them.
        codes_XL: int64, the code of each level.
        weights_XL: float32, of each cross-entropy in the loss.
        first: float32 [], what the weighed cross-entropies are added to.
        score: `entropy`: of the level's distribution, in nats; `loss`: the code's cross-entropy. Never below 0.
    """
    if uses_kernels(codes_XL.device) and torch.is_grad_enabled() and _fits(logits):
        from pipeline.ops.triton import heads

        loss_X, scores_LX = heads.scored_losses_of_levels(logits, codes_XL, weights_XL, score)
        return first + loss_X.sum(), scores_LX
    total, scores = first, list[Tensor]()
    for level, logits_XV in enumerate(logits):
        logp_XV = F.log_softmax(logits_XV.float(), 1)
        loss_X = -logp_XV.gather(1, codes_XL[:, level, None])[:, 0]
        total = total + (loss_X * weights_XL[:, level]).sum()
        # Never below 0; clamp(min=0) of the entropy could change the sign of a zero.
        with torch.no_grad():
            scores.append(-(-entropy(logp_XV)).clamp(max=0) if score == "entropy" else loss_X.clamp(min=0))
    return total, torch.stack(scores)


def _fits(tensors: Sequence[Tensor]) -> bool:
    """Tell whether the kernels can take these logits, or these states and weights."""
    return all(x.dtype == torch.float32 and x.shape[-1] <= MOST_CODES for x in tensors)
