"""What a trained model would show next: to a user of the log, or after any list of items."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SPLITS, Interactions, Splits, read_parquet
from pipeline.backbones.generator import Generator, load_generator
from pipeline.errors import UserError
from pipeline.evaluate.ranks import check_fit, check_reports
from pipeline.names import dense_ids
from pipeline.ranking import generate

BEAM = 20  # at least; a narrower search would find worse items for a short list


@dataclass(frozen=True)
class Recommendation:
    """An item by its raw id. title is empty where the log has none; score is the log-probability of its SID."""

    item: str
    title: str
    score: float


def recommend(*, user: str | None = None, history: Sequence[str] | None = None, k: int = 10,
              filter_seen: bool = False, interactions: Path = INTERACTIONS, splits: Path = SPLITS,
              generator: Path = GENERATOR, reports: Path = REPORTS) -> list[Recommendation]:
    """The k items that the model expects next, best first; fewer when the catalogue has fewer.

    Args:
        user: raw id; all that is known of the user is the history, held-out items too: a forecast of the next item.
        history: raw item ids, oldest first, instead of a user.
        filter_seen: leave out items of the history.

    Raises:
        UserError: an unknown id, an empty history, nothing left to recommend, or a model that its reports or the
            splits do not belong to.
    """
    if k < 1:
        raise UserError(f"k is {k}", "it is the number of items to show", "give 1 or more")
    loaded, items, times = model_and_history(user, history, interactions=interactions, splits=splits,
                                             generator=generator, reports=reports)
    return _best(loaded, items, times, k, filter_seen)


def model_and_history(user: str | None, history: Sequence[str] | None, *, interactions: Path, splits: Path,
                      generator: Path, reports: Path) -> tuple[Generator, np.ndarray, np.ndarray | None]:
    """The model, the ids of the most recent items that it would see, and when they came, if it wants to know.

    Raises as `recommend`.
    """
    if (user is None) == (history is None):
        raise UserError("give a user or a history", "one of them says what to go on from",
                        "add --user ID, or --history ID,ID")
    check_reports(reports, generator)
    loaded = load_generator(generator)
    times: np.ndarray | None = None
    if history is None:
        items, times = _history_of(str(user), loaded, interactions, splits, generator)
    elif loaded.model.wants_times:
        raise UserError("the model reads when each item came, and a list of items does not say so",
                        f"it was trained with backbone {loaded.config['backbone']['name']} and its time bias",
                        "name a user with --user, or train with backbone.time_bias=false")
    else:
        items = dense_ids(list(history), loaded.items, "item", generator / "items.parquet")
    if not len(items):
        raise UserError("the history is empty", "there is nothing to go on from", "name at least one item")
    recent = slice(-int(loaded.config["max_history"]), None)
    return loaded, items[recent], times[recent] if times is not None and loaded.model.wants_times else None


def _best(loaded: Generator, history: np.ndarray, times: np.ndarray | None, k: int,
          filter_seen: bool) -> list[Recommendation]:
    outputs = generate(loaded.model, loaded.catalogue, history, np.array([0, len(history)]), beam=max(k, BEAM),
                       drop_seen=len(history) if filter_seen else 0, times=times)
    titles = loaded.items["title"] if "title" in loaded.items else pd.Series("", index=loaded.items.index)
    found = [(item, score) for item, score in zip(outputs.items_WK[0], outputs.scores_WK[0], strict=True) if item >= 0]
    if not found:
        raise UserError("every item is in the history", "nothing is left to recommend", "keep seen items")
    return [Recommendation(str(loaded.items["raw_id"][item]), "" if pd.isna(titles[item]) else str(titles[item]),
                           float(score)) for item, score in found[:k]]


def _history_of(user: str, loaded: Generator, interactions: Path, splits: Path,
                generator: Path) -> tuple[np.ndarray, np.ndarray]:
    """The user's whole sequence of item ids, and their times."""
    log = Splits.read(splits)
    check_fit(loaded, generator, log, splits)
    path = Interactions(interactions).users
    users = read_parquet(path)
    if len(users) != log.users:
        raise UserError(f"{path} has {len(users):,} users, {splits} has {log.users:,}",
                        "they were made from different logs", "run `dvc repro`, or `dvc checkout`")
    index = int(dense_ids([user], users, "user", path)[0])
    own = slice(log.offsets[index], log.offsets[index + 1])
    return np.asarray(log.items_N[own]), np.asarray(log.timestamps_N[own])
