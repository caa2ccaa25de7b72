"""This module scores items exactly, without a search: a whole catalogue, or given items of each window.

Shape legend: W windows, K beams, L levels, I items of the catalogue, V codes of one level; local: P Semantic IDs, C
children of some nodes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.catalogue import Catalogue
from pipeline.packing.backbone import Backbone, require_eval
from pipeline.packing.histories import Histories

SCORING_BUDGET = 2**24  # log-probabilities held at once while a catalogue is scored


@torch.no_grad()
def score_catalogue(model: Backbone, histories: Histories) -> Tensor:
    """Return the exact log-probability of every item for every window: float32 [W, I], rows in input order.

    The walk visits the whole prefix trie, so that its cost grows with the catalogue. It serves as an oracle in tests
    and ranks small catalogues exactly.

    Raises:
        ValueError: the model is in training mode.
    """
    require_eval(model)
    catalogue = model.catalogue
    logits_WKV, state = model.step(model.begin(histories))
    root_WK = torch.zeros(logits_WKV.shape[:2], device=logits_WKV.device)
    scores_WP = root_WK.new_empty(histories.windows, catalogue.prefixes[-1])
    for leaves, scores_WC in _score_below(model, state, logits_WKV, root_WK, 0, 0, 1):
        scores_WP[:, leaves] = scores_WC
    return histories.in_input_order(scores_WP[:, catalogue.leaf_of_item_I])


@torch.no_grad()
def score_items(model: Backbone, histories: Histories, items_WK: Tensor) -> Tensor:
    """Return the exact log-probability of the given items of each window: float32 [W, K], rows in input order.

    The items take the slots of a search's beams, so that this costs about what a search of K beams does.

    Args:
        items_WK: int64, rows in input order; -inf is returned where an entry is below 0.

    Raises:
        ValueError: the model is in training mode.
    """
    require_eval(model)
    catalogue = model.catalogue
    # Rows in the order of the packed batch, as the network has them.
    order_W = torch.from_numpy(histories.order).to(items_WK.device)
    codes_WKL = catalogue.codes_IL[items_WK.clamp(min=0)[order_W]]
    logits_WKV, state = model.step(model.begin(histories))
    beams_WK = torch.zeros_like(codes_WKL[..., 0])
    scores_WK = torch.zeros(beams_WK.shape, device=beams_WK.device)
    for level in range(catalogue.levels):
        logits_WKV = logits_WKV.float().log_softmax(-1).expand(-1, beams_WK.shape[1], -1)
        scores_WK = scores_WK + logits_WKV.gather(2, codes_WKL[..., level, None]).squeeze(2)
        if level + 1 < catalogue.levels:
            logits_WKV, state = model.step(state, beams_WK, codes_WKL[..., level].contiguous())
        if level == 0:  # from now on each item continues its own beam
            beams_WK = torch.arange(beams_WK.shape[1], device=beams_WK.device).expand_as(beams_WK)
    return histories.in_input_order(scores_WK).masked_fill(items_WK < 0, float("-inf"))


def _score_below(
    model: Backbone, state: Any, logits_WKV: Tensor, scores_WK: Tensor, level: int, first: int, stop: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the scores of all leaves below the nodes first .. stop - 1 of `level`, which are the beams of `state`.

    Yields:
        A run of leaves, and their scores [W, leaves of the run].
    """
    catalogue = model.catalogue
    # The children of all these nodes are one range of the next level's nodes.
    # children offsets 3 5 6 of two nodes -> the nodes 3, 4, 5; beams 0 0 1
    offsets = catalogue.first_child(level)[first : stop + 1]
    begin, end = int(offsets[0]), int(offsets[-1])
    beam_C = torch.repeat_interleave(offsets.diff(), output_size=end - begin)
    code_C = catalogue.code(level)[begin:end]
    scores_WC = (scores_WK[..., None] + logits_WKV.float().log_softmax(-1))[:, beam_C, code_C]
    if level + 1 == catalogue.levels:
        yield slice(begin, end), scores_WC
        return
    # The children become the beams of the next step, in runs so small that the leaves below one run fit into memory.
    windows = len(scores_WC)
    for a, b in _chunks(catalogue, level + 1, begin, end, SCORING_BUDGET // (windows * max(catalogue.widths))):
        part = slice(a - begin, b - begin)
        logits, after = model.step(state, beam_C[part].expand(windows, -1), code_C[part].expand(windows, -1))
        yield from _score_below(model, after, logits, scores_WC[:, part], level + 1, a, b)


def _chunks(catalogue: Catalogue, level: int, begin: int, end: int, leaves: int) -> Iterator[tuple[int, int]]:
    """Split the nodes begin .. end - 1 of `level` into runs with at most `leaves` items below them, one node at least.

    items before each node 0 2 3 7 8, leaves 3 -> runs (0, 2), (2, 3) with its one node of 4 items, (3, 4)
    """
    before = catalogue.leaves_before[level]
    while begin < end:
        stop = int(np.searchsorted(before, before[begin] + leaves, side="right")) - 1
        stop = min(max(stop, begin + 1), end)
        yield begin, stop
        begin = stop
