"""Turn raw ids, as a user types them, into dense ids."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

CANDIDATES = 100_000  # known ids among which the nearest ones to an unknown id are searched


def dense_ids(raw: Sequence[str], known: "pd.DataFrame", kind: str, source: Path) -> np.ndarray:
    """Return the dense ids of raw ids: the rows of `known` that have them as raw_id.

    Args:
        known: a table with a column raw_id, row = dense id.
        kind: `user` or `item`, for the message.
        source: the file of `known`, for the message.

    Raises:
        UserError: a raw id is not known; the message names the nearest known ones.
    """
    import pandas as pd

    names = pd.Index(known["raw_id"].astype(str))
    ids = names.get_indexer(pd.Index(raw))
    unknown = [name for name, index in zip(raw, ids, strict=True) if index < 0]
    if unknown:
        close = difflib.get_close_matches(unknown[0], names[:CANDIDATES], n=3, cutoff=0.5)
        others = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"{kind} '{unknown[0]}' is not known{others}",
            f"{source} lists {len(names):,} {kind}s",
            f"did you mean {' or '.join(close)}?"
            if close
            else f"give an id of that file, such as {', '.join(names[:3])}",
        )
    return ids
