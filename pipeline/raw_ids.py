"""Raw ids as a user types them -> dense ids."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

CANDIDATES = 100_000  # ids that an unknown one is held against


def dense_ids(raw: Sequence[str], known: "pd.DataFrame", kind: str, source: Path) -> np.ndarray:
    """Dense ids of raw ones: rows of `known`, by its raw_id.

    Raises:
        UserError: naming the nearest raw ids of one that is not known.
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
            f"did you mean {' or '.join(close)}?" if close else f"such as {', '.join(names[:3])}",
        )
    return ids
