"""Facts of the log that a served model needs beside its weights: the popular items, and the usual gap between items.

A served model has no log at hand. `serving.json` lies beside the copy of the model and holds what it would ask the log.
"""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import Splits

FACTS_FILE = "serving.json"
POPULAR = 1000  # how many popular items are listed


def serving_facts(splits: Path) -> dict[str, Any]:
    """Return the content of serving.json.

    popular: item ids by their training interactions, most first, equal counts by item id. step_seconds: the median gap
    between two items of a user, by which a history without times is read.
    """
    log = Splits.read(splits)
    items_N = np.asarray(log.items_N)
    offsets = np.asarray(log.offsets)
    # Interactions of the training part: before each user's train_end.
    user_N = np.repeat(np.arange(log.users), np.diff(offsets))
    in_training_N = np.arange(len(items_N)) < np.asarray(log.train_end)[user_N]
    counts_I = np.bincount(items_N[in_training_N], minlength=log.summary["items"])
    popular = np.argsort(-counts_I, kind="stable")[:POPULAR]
    gaps = np.diff(log.seconds())[user_N[1:] == user_N[:-1]]
    return {"popular": popular.tolist(), "step_seconds": int(np.median(gaps)) if len(gaps) else 0}
