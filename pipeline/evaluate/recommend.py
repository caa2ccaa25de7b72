"""Recommend the next items to a user of the log, or after any list of items."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SPLITS, Interactions, Splits, read_parquet
from pipeline.errors import UserError
from pipeline.evaluate.typed_history import Entry, equal_steps, read_history
from pipeline.generator import Generator, load_generator
from pipeline.packing.kept import KeptItems
from pipeline.raw_ids import dense_ids, naming_the_cut
from pipeline.results.ranks import answers_by, check_fit, check_reports, drops_seen
from pipeline.views.served import Served, served_by

BEAM = 20  # least width of the beam: a narrower search would find worse items for a short list


@dataclass(frozen=True)
class Recommendation:
    """A recommendation names an item by its raw id.

    title: empty where the log has none. score: log-probability of the item's Semantic ID; by another ranking than the
    generator's, the logarithm of what `Served.generate` says.
    """

    item: str
    title: str
    score: float


@dataclass(frozen=True)
class History:
    """A history holds the ids of the most recent items of somebody, oldest first."""

    items: np.ndarray  # int
    times: np.ndarray | None  # int64: when each item came, if the model wants to know
    actions: np.ndarray | None  # the action of each item, if the model reads actions and they are known
    kept: KeptItems | None  # what the model sees of the items; None: all


def recommend(
    *,
    user: str | None = None,
    history: Sequence[Entry] | None = None,
    k: int = 10,
    filter_seen: bool | None = None,
    interactions: Path = INTERACTIONS,
    splits: Path = SPLITS,
    generator: Path = GENERATOR,
    reports: Path = REPORTS,
) -> list[Recommendation]:
    """Return the k items that the model expects next, best first; fewer when the catalogue has fewer left.

    A history of every item leaves none where `filter_seen` holds.

    Args:
        user: raw id. The history is all that is known of the user, held-out items too, so this forecasts the next item.
        history: raw item ids, oldest first, instead of a user. The model sees all of them, also where skipgr.at_eval
            hides some tokens of a user: skipping goes by scores, and items of a list have none. An item may come with
            its time, as "ID@TIME" or (ID, time): then the times decide on the order, and a model that reads times reads
            these. Without times it reads equal steps, each the median gap of the log, and stderr says so.
        filter_seen: leave out items of the history. None: as in the model's evaluation (evaluate.filter_seen), or leave
            them in where `reports` has none.

    Raises:
        UserError: an unknown id, a time that cannot be read, an empty history, or a model that its reports or the
            splits do not belong to.
    """
    if k < 1:
        raise UserError(f"k is {k}", "it is the number of items to show", "give 1 or more")
    loaded, known = model_and_history(
        user, history, interactions=interactions, splits=splits, generator=generator, reports=reports
    )
    served = served_by(loaded, generator, answers_by(reports))
    return _best(served, known, k, drops_seen(reports) if filter_seen is None else filter_seen)


def model_and_history(
    user: str | None,
    history: Sequence[Entry] | None,
    *,
    interactions: Path,
    splits: Path,
    generator: Path,
    reports: Path,
) -> tuple[Generator, History]:
    """Return the model, and the history that it continues. Arguments and errors are those of `recommend`."""
    if (user is None) == (history is None):
        raise UserError(
            "give either a user or a history",
            "the model goes on from one of them",
            "give --user ID or --history ID,ID, and not both",
        )
    check_reports(reports, generator)
    loaded = load_generator(generator)
    loaded.require_items(generator)
    with naming_the_cut(Interactions(interactions).cut):
        if history is None:
            known = _history_of(str(user), loaded, interactions, splits, generator)
        else:
            known = _typed_history(history, loaded, splits, generator)
    if not len(known.items):
        raise UserError("the history is empty", "there is nothing to go on from", "name at least one item")
    return loaded, known


def _typed_history(history: Sequence[Entry], loaded: Generator, splits: Path, generator: Path) -> History:
    """Return the last items of a history that somebody typed; without times, items come at equal steps."""
    wants_times = loaded.model.wants_times
    items, times = read_history(history, loaded.items, generator / "items.parquet", wants_times=wants_times)
    recent = slice(-int(loaded.config["max_history"]), None)
    if wants_times and times is None and len(items):
        log = Splits.read(splits)
        check_fit(loaded, generator, log, splits)
        times = equal_steps(len(items), log.seconds(), np.asarray(log.offsets))
    return History(items[recent], times[recent] if wants_times and times is not None else None, None, None)


def _best(served: Served, history: History, k: int, filter_seen: bool) -> list[Recommendation]:
    """Return the first k items of the ranking by which the model answers."""
    loaded, items = served.generator, history.items
    outputs = served.generate(
        items,
        np.array([0, len(items)]),
        beam=max(k, BEAM),
        drop_seen=len(items) if filter_seen else 0,
        times=history.times,
        actions=history.actions,
        kept=history.kept,
    )
    found = [(item, score) for item, score in zip(outputs.items_WK[0], outputs.scores_WK[0], strict=True) if item >= 0]
    best = found[:k]
    names = names_of(loaded, [item for item, _ in best])
    return [Recommendation(*name, float(score)) for name, (_, score) in zip(names, best, strict=True)]


def names_of(loaded: Generator, items: Iterable[int]) -> list[tuple[str, str]]:
    """Return (raw id, title) of each item id; a title is empty where the log has none."""
    titles = loaded.items["title"] if "title" in loaded.items else pd.Series("", index=loaded.items.index)
    return [(str(loaded.items["raw_id"][item]), "" if pd.isna(titles[item]) else str(titles[item])) for item in items]


def _history_of(user: str, loaded: Generator, interactions: Path, splits: Path, generator: Path) -> History:
    """Return the last items of the user's whole sequence."""
    log = Splits.read(splits)
    check_fit(loaded, generator, log, splits)
    path = Interactions(interactions).users
    users = read_parquet(path)
    if len(users) != log.users:
        raise UserError(
            f"{path} has {len(users):,} users, {splits} has {log.users:,}",
            "they were made from different logs",
            "run `dvc repro`, or `dvc checkout`",
        )
    index = int(dense_ids([user], users, "user", path)[0])
    first, end = log.offsets[index], log.offsets[index + 1]
    positions = np.arange(max(first, end - int(loaded.config["max_history"])), end)
    times = log.seconds(positions) if loaded.model.wants_times else None
    kept = loaded.eval_skips.kept(positions, np.array([0, len(positions)])) if loaded.eval_skips else None
    actions = log.actions_of(positions) if loaded.catalogue.action_sizes else None
    return History(np.asarray(log.items_N)[positions], times, actions, kept)
