"""This module ranks items by beam search over Semantic IDs.

The score of an item is the log-probability of its codes. Each code's probability is from the softmax over all codes of
its level, also in a constrained search: the constraint only saves the search from spending beams on codes that name
nothing. Items that share a Semantic ID have one score and follow each other by item id. Every step below is one
operation over all windows and beams; no window is handled alone.

Shape legend: W windows, K beams, L levels, V codes of one level; local: C candidates of a window, F children of a
prefix, S tokens of one item.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.catalogue import Catalogue
from pipeline.cuda_graphs import CudaGraphed
from pipeline.ops.compiling import compile_kernels_of
from pipeline.ops.layout import uses_kernels
from pipeline.packing.backbone import Backbone, require_eval
from pipeline.packing.histories import Histories
from pipeline.packing.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Callable

WIDEST_ON_KERNELS = 256  # beams of a window that one program can sort
MOST_CODES_ON_KERNELS = 4096  # codes of a level that one program can hold; the items of a catalogue are more


@dataclass(frozen=True)
class Beams:
    """`Beams` hold the best candidates of each window, best first; rows in input order, on the model's device."""

    items_WK: Tensor  # int64; -1: the Semantic ID names no item, or there are fewer than K candidates
    codes_WKL: Tensor  # int64; without meaning where the score is -inf
    scores_WK: Tensor  # float32 log-probabilities; -inf: no candidate


@torch.no_grad()
def beam_search(model: Backbone, histories: Histories, beam: int, constrained: bool = True) -> Beams:
    """Return the items of the `beam` most probable Semantic IDs of each window, cut to the first `beam` items.

    Equal scores are ordered by Semantic ID (constrained) or by beam and code (free), so that results repeat exactly.

    Args:
        constrained: search among the catalogue's Semantic IDs only; otherwise among all combinations of codes.

    Raises:
        ValueError: the model is in training mode, so that dropout would make the ranking a lottery.
    """
    require_eval(model)
    catalogue = model.catalogue
    # Each window begins with one beam: the root of the prefix trie, no code, score 0.
    logits_WKV, state = model.step(model.begin(histories))
    scores_WK = torch.zeros(logits_WKV.shape[:2], device=logits_WKV.device)
    nodes_WK = torch.zeros_like(scores_WK, dtype=torch.int64)
    codes_WKL = nodes_WK.new_empty(*nodes_WK.shape, 0)
    for level in range(catalogue.levels):
        scores_WK, ranks_WK, beams_WK = best_continuations(
            catalogue, level, nodes_WK, scores_WK, logits_WKV, beam, constrained
        )
        # The code that each new beam appends, and the prefix that it then has: -1 when it names nothing (free search).
        if constrained:
            nodes_WK = ranks_WK
            new_WK = catalogue.code(level)[nodes_WK]
        else:
            new_WK = ranks_WK % catalogue.widths[level]
            nodes_WK = catalogue.child(level, nodes_WK.gather(1, beams_WK), new_WK)
        # codes (4), (7); beams 1 1 0, new codes 2 5 2 -> (7, 2), (7, 5), (4, 2)
        codes_WKL = torch.cat([codes_WKL.take_along_dim(beams_WK[..., None], 1), new_WK[..., None]], -1)
        if level + 1 < catalogue.levels:
            logits_WKV, state = model.step(state, beams_WK, new_WK)
    # From leaves to items. A beam without a candidate has score -inf and no leaf.
    nodes_WK = torch.where(scores_WK > float("-inf"), nodes_WK, -1)
    if catalogue.shares:
        # One beam may name several items; slots after the last item point to a beam K, which has score -inf.
        items_WK, beams_WK = catalogue.items_of(nodes_WK, beam)
        scores_WK = F.pad(scores_WK, (0, 1), value=float("-inf")).gather(1, beams_WK)
        codes_WKL = F.pad(codes_WKL, (0, 0, 0, 1)).take_along_dim(beams_WK[..., None], 1)
    else:
        items_WK = torch.where(nodes_WK >= 0, catalogue.item_of_leaf_I[nodes_WK], -1)
    # A small catalogue gives fewer than `beam` candidates: the rest is filled up.
    missing = beam - items_WK.shape[1]
    return Beams(
        histories.in_input_order(F.pad(items_WK, (0, missing), value=-1)),
        histories.in_input_order(F.pad(codes_WKL, (0, 0, 0, missing))),
        histories.in_input_order(F.pad(scores_WK, (0, missing), value=float("-inf"))),
    )


class Search:
    """Run `beam_search` over many batches, on a GPU as a recorded CUDA graph.

    Args:
        shape: the shape that every batch is filled up to, so that one recording serves all batches; only where kernels
            run. The recorded search reads the weights that the model has at each call. None: batches are searched
            without filling and without recording.
        longest: bound of a window's items where `shape` is given.
    """

    def __init__(
        self, model: Backbone, beam: int, *, constrained: bool = True, shape: Shape | None = None, longest: int = 0
    ):
        self.model = model
        self.beam = beam
        self.constrained = constrained
        self.shape = shape
        self.longest = longest
        self._cold = shape is not None  # the first of many searches compiles kernels
        # A recording replays the search for tensors of the same shapes and the same `model.sizes`.
        self._beams: Callable[[Histories], Beams] = self._search
        if shape is not None:
            self._beams = CudaGraphed(self._search, model.sizes)

    def __call__(
        self,
        items_N: np.ndarray,
        offsets: np.ndarray,
        times_N: np.ndarray | None = None,
        kept_NS: np.ndarray | None = None,
        actions_NA: np.ndarray | None = None,
    ) -> Beams:
        """Search the windows items_N[offsets[w]:offsets[w + 1]]. A later call may overwrite the result.

        Args:
            times_N: seconds, the time of each item; for a model that wants times.
            kept_NS: see `Histories.pack`; only without `shape`.
            actions_NA: the actions of the items, for a model that reads actions.
        """
        device = self.model.catalogue.codes_IL.device
        windows = len(offsets) - 1
        if self.shape is not None:
            # Windows of item 0 fill the batch up to the shape, and their results are cut off again.
            # shape of 4 windows and 12 items, lengths 3, 2 -> filling 4, 3; offsets 0 3 5 -> 0 3 5 9 12
            filling_W = self.shape.filling(np.diff(offsets), self.longest)
            items_N = np.pad(items_N, (0, int(filling_W.sum())))
            times_N = None if times_N is None else np.pad(times_N, (0, int(filling_W.sum())))
            actions_NA = None if actions_NA is None else np.pad(actions_NA, ((0, int(filling_W.sum())), (0, 0)))
            offsets = np.concatenate([offsets, offsets[-1] + np.cumsum(filling_W)])
        # With a recording, this call copies the tensors of the histories into those that the graph reads, and replays.
        beams = self._beams(
            Histories.pack(
                items_N,
                offsets,
                device,
                longest=self.longest,
                times_N=times_N,
                actions_NA=actions_NA,
                kept_NS=kept_NS,
            )
        )
        return Beams(beams.items_WK[:windows], beams.codes_WKL[:windows], beams.scores_WK[:windows])

    def _search(self, histories: Histories) -> Beams:
        search = partial(beam_search, self.model, histories, self.beam, self.constrained)
        if self._cold:
            compile_kernels_of(histories.items_N.device, search)
            self._cold = False
        return search()


def best_continuations(
    catalogue: Catalogue,
    level: int,
    nodes_WK: Tensor,
    scores_WK: Tensor,
    logits_WKV: Tensor,
    beam: int,
    constrained: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `beam` best continuations of each window's beams, or all if there are fewer; best first.

    Returns:
        [W, K] each: the score; the rank, which orders equal scores and is the node of the next level (constrained) or
        beam and code as one number, beam * V + code (free); the beam that is continued.
    """
    on_kernels = beam <= WIDEST_ON_KERNELS and catalogue.widths[level] <= MOST_CODES_ON_KERNELS
    if uses_kernels(logits_WKV.device) and on_kernels:
        from pipeline.decoding import beam_triton

        return beam_triton.best_continuations(catalogue, level, nodes_WK, scores_WK, logits_WKV, beam, constrained)
    scores_WKV = scores_WK[..., None] + logits_WKV.float().log_softmax(-1)
    if not constrained:
        # Candidates are all codes of all beams: V 4, candidate 6 -> beam 1, code 2
        scores_WC = scores_WKV.flatten(1)
        scores_WK, best_WK = top_k(scores_WC, torch.arange(scores_WC.shape[1], device=scores_WC.device), beam)
        return scores_WK, best_WK, best_WK // scores_WKV.shape[2]
    # Candidates are the children of each beam's prefix, padded to the widest prefix of the level.
    # first 0 2 3, beams at nodes 1 and 0, fanout 2 -> children 2 . | 0 1 (a dot does not exist: child 0, score -inf)
    fanout = catalogue.fanout[level]
    first = catalogue.first_child(level)
    child_F = torch.arange(fanout, device=nodes_WK.device)
    begin_WK1 = first[nodes_WK][..., None]
    exists_WKF = child_F < first[nodes_WK + 1][..., None] - begin_WK1
    child_WKF = torch.where(exists_WKF, begin_WK1 + child_F, 0)
    scores_WKF = scores_WKV.gather(2, catalogue.code(level)[child_WKF]).masked_fill_(~exists_WKF, float("-inf"))
    scores_WK, best_WK = top_k(scores_WKF.flatten(1), child_WKF.flatten(1), beam)
    return scores_WK, child_WKF.flatten(1).gather(1, best_WK), best_WK // fanout


def top_k(scores_WC: Tensor, rank_C: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest float32 scores of each row (or all if there are fewer) and their columns, best first.

    Equal scores come in ascending order of `rank_C` (integers below 2^31): score and rank are packed into one integer,
    because `topk` itself promises nothing about ties.
    """
    # Integers in the order of the floats: negative floats have all bits but the sign flipped.
    bits_WC = scores_WC.view(torch.int32)
    bits_WC = bits_WC ^ ((bits_WC >> 31) & 0x7FFFFFFF)
    # Above them, the lower rank is the larger number: keys of (0.5, rank 3) < (0.5, rank 1) < (0.7, rank 9)
    keys_WC = (bits_WC.long() << 32) | (0x7FFFFFFF - rank_C)
    best_WK = keys_WC.topk(min(k, scores_WC.shape[1])).indices
    return scores_WC.gather(1, best_WK), best_WK
