"""Refuse vectors that no quantizer can use, before a library fails at them.

Shape legend: I items, d width of the vectors.
"""

from typing import Protocol

import numpy as np

from pipeline.errors import UserError
from pipeline.printing import shown
from pipeline.quantize.rows import blocks

# The squares of larger numbers, added up over the width, leave the range of float32.
LARGEST = 1e15
SMALLEST = 1e-15  # where no number is larger, squares vanish in the same way
NAMED = 5  # items that a message names
MEND = "run `dvc repro`; with embed.encoder precomputed, mend the file that embed.path names"


class IdsByItem(Protocol):
    """The raw ids of all items, which are read only where a message names some."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> str: ...


def check_vectors(vectors_Id: np.ndarray, raw_ids: IdsByItem, *, needed: bool = True) -> None:
    """Check that there is a vector of usable numbers for each item. A width of 0 is that of embed.encoder none.

    Args:
        vectors_Id: float [I, d], row = item_id.
        raw_ids: the id of each item, for messages.
        needed: whether all may not be zero, because nothing else tells items apart.

    Raises:
        UserError: the number of vectors is another one, a number is NaN, infinite or beyond `LARGEST`, or all are zero.
    """
    if vectors_Id.ndim != 2 or len(vectors_Id) != len(raw_ids):
        raise UserError(
            f"the embeddings have the shape {list(vectors_Id.shape)}, and there are {len(raw_ids):,} items",
            "embeddings and items were made from different logs",
            MEND,
        )
    if not vectors_Id.size:
        return
    most_I = np.empty(len(vectors_Id), vectors_Id.dtype)  # NaN, where a number is
    for block in blocks(vectors_Id.shape):
        most_I[block] = np.abs(vectors_Id[block]).max(axis=1)
    _refuse(~np.isfinite(most_I), "NaN or infinite numbers", "distances to such vectors mean nothing", raw_ids)
    _refuse(most_I > LARGEST, f"numbers beyond {LARGEST:.0e}", "float32 cannot hold their distances", raw_ids)
    if needed and most_I.max() < SMALLEST:
        raise UserError(
            f"the embeddings of all {len(raw_ids):,} items are zero, or smaller than {SMALLEST:.0e}",
            "vectors of zeros do not tell items apart",
            "bring other vectors, choose another embed.encoder, or set quantize.interactions to 1",
        )


def _refuse(wrong_I: np.ndarray, what: str, why: str, raw_ids: IdsByItem) -> None:
    """Raise UserError if an item is wrong, with the number of these items and the first ones."""
    found = np.flatnonzero(wrong_I)
    if len(found):
        named = ", ".join(shown(raw_ids[item]) for item in found[:NAMED])
        raise UserError(
            f"{len(found):,} of {len(raw_ids):,} items have {what} in their embedding, first: {named}", why, MEND
        )
