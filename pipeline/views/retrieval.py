"""The items that the dense retriever expects next: by the products with all items, or by its index.

By an index, nothing is known of the items that it does not list: their probability counts as 0, so that the scores are
log-probabilities among the listed items. Orders, and how far an item is above the last one of a list, are the same.
"""

import numpy as np

from pipeline.decoding.beam_search import Search
from pipeline.decoding.item_index import states_of
from pipeline.decoding.ranking import Outputs, generate_items, windows_at_once, without_seen
from pipeline.generator import Generator

OUTPUTS = ("items_WK", "codes_WKL", "scores_WK")  # the columns of `Outputs`


def retrieved_items(
    dense: Generator,
    items: np.ndarray,
    offsets: np.ndarray,
    *,
    beam: int,
    drop_seen: int = 0,
    search: Search | None = None,
) -> Outputs:
    """Return the `beam` items that the retriever expects next after each history, best first.

    Args:
        dense: the retriever; where it has an index, the index is asked.
        items: the items of all histories, end to end.
        offsets: history w is items[offsets[w]:offsets[w + 1]], one item at least.
        beam: items of an answer.
        drop_seen: as in `generate_items`.
        search: `beam` + `drop_seen` wide, where more batches will follow; None: a new one. An index needs none.
    """
    if dense.index is None:
        # A large catalogue is scored for some windows at a time.
        size = windows_at_once(dense.catalogue, len(offsets) - 1)
        found = []
        for start in range(0, len(offsets) - 1, size):
            some = offsets[start : start + size + 1]
            part = items[some[0] : some[-1]], some - some[0]
            found.append(generate_items(dense.model, *part, beam=beam, drop_seen=drop_seen, search=search))
        return Outputs(*(np.concatenate([getattr(one, name) for one in found]) for name in OUTPUTS))
    codes_IL = dense.catalogue.codes_IL
    items_WK, scores_WK = dense.index.search(states_of(dense.model, items, offsets), beam + drop_seen)
    peak_W1 = scores_WK[:, :1]
    scores_WK = scores_WK - peak_W1 - np.log(np.exp(scores_WK - peak_W1).sum(1, keepdims=True))
    outputs = Outputs(items_WK, codes_IL.cpu().numpy()[items_WK.clip(min=0)], scores_WK.astype(np.float32))
    return without_seen(outputs, items, offsets, beam) if drop_seen else outputs
