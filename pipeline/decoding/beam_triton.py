"""This module chooses a level's beams by two Triton kernels, those of beam_kernels.py.

Shape legend: W windows, K beams, V codes of one level; local: C candidates of a window.
"""

import torch
import triton
from torch import Tensor

from pipeline.catalogue import Catalogue
from pipeline.decoding.beam_kernels import candidates_kernel, choose_beams_kernel
from pipeline.ops.compiling import launch

KEYS_AT_ONCE = 1024  # keys (int64) that a program sorts at once, at least


def best_continuations(
    catalogue: Catalogue,
    level: int,
    nodes_WK: Tensor,
    scores_WK: Tensor,
    logits_WKV: Tensor,
    beam: int,
    constrained: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `beam_search.best_continuations` says: the best children of each beam first, then the best of these.

    A window has K * `best_per_beam` candidates: beam 5 and 40 children of a beam -> K beams with 8 candidates each.
    """
    windows, beams, width = logits_WKV.shape
    first = catalogue.first_child(level)
    code = catalogue.code(level)
    fanout = catalogue.fanout[level] if constrained else width
    best = min(beam, beams * fanout)
    children = _padded(fanout)
    width_padded = _padded(beam)
    best_per_beam = min(width_padded, children)
    keys_WC = torch.empty(windows, beams * best_per_beam, device=logits_WKV.device, dtype=torch.int64)
    launch(
        candidates_kernel,
        (windows * beams,),
        logits_WKV.contiguous(),
        scores_WK,
        nodes_WK,
        first,
        code,
        keys_WC,
        beams,
        width,
        written=[keys_WC],
        FREE=not constrained,
        TOP=best_per_beam,
        BV=triton.next_power_of_2(width),
        BF=children,
        num_warps=min(8, max(1, children // 128)),
    )
    scores_WK = torch.empty(windows, best, device=logits_WKV.device)
    ranks_WK, beams_WK = (torch.empty(windows, best, device=logits_WKV.device, dtype=torch.int64) for _ in range(2))
    launch(
        choose_beams_kernel,
        (windows,),
        keys_WC,
        nodes_WK,
        first,
        scores_WK,
        ranks_WK,
        beams_WK,
        beams,
        beams * best_per_beam,
        best,
        width,
        written=[scores_WK, ranks_WK, beams_WK],
        FREE=not constrained,
        BC=max(width_padded, KEYS_AT_ONCE),
        BB=width_padded,
        num_warps=8,
    )
    return scores_WK, ranks_WK, beams_WK


def _padded(size: int) -> int:
    """Return the next size that `tl.topk` takes: a power of two, 2 or more."""
    power: int = triton.next_power_of_2(size)
    return max(2, power)
