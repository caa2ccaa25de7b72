"""Answer requests with a trained model that is loaded once: raw item ids in, the next items out, many rows at a time.

A request comes from outside, so nothing in it stops the others: an unknown id is ignored and counted, and a history
without a known item gets the popular items, which the answer says.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from pipeline.artifacts import MICROSECONDS, read_json
from pipeline.decoding.ranking import Outputs
from pipeline.errors import UserError
from pipeline.generator import load_generator
from pipeline.printing import shown
from pipeline.raw_ids import whole_number
from pipeline.raw_times import TimeColumn, first_reasons
from pipeline.views.served import served_by

BEAM = 20  # least width of the beam, as in `recommend`
BATCH = 256  # histories that one search takes


@dataclass(frozen=True)
class Request:
    """A request is one history: raw item ids, oldest first.

    times: one for each id, in any form that a log may have; None: the items came at equal steps.
    """

    history: Sequence[str]
    times: Sequence[Any] | None = None


@dataclass(frozen=True)
class Answer:
    """An answer holds the next items of one history, best first.

    scores: log-probabilities of the Semantic IDs, or what `Served.generate` says of another ranking; empty where the
    items are the popular ones. unknown: ids of the
    history that the catalogue does not have. source: `model`; `popular` where no id of the history is known; `none`
    where no item is left, because the items of the history are left out and it has every item.
    """

    items: list[str]
    titles: list[str]
    scores: list[float]
    unknown: int
    source: str


class Recommender:
    """A `Recommender` holds one model in memory and answers any number of requests.

    Args:
        generator: a folder such as models/generator, with what its ranking needs beside it.
        facts: serving.json of that model (`serving_facts`).
    """

    def __init__(self, generator: Path, facts: Path, device: torch.device | str = "cpu"):
        self.loaded = load_generator(generator, device)
        self.loaded.require_items(generator)
        # A server answers each request in a thread of its own. Searches at once would take the cores from each other.
        self.one_search = threading.Lock()
        items = self.loaded.items
        self.raw_ids = items["raw_id"].astype(str).tolist()
        titles = items["title"] if "title" in items else pd.Series("", index=items.index)
        self.titles = titles.fillna("").astype(str).tolist()
        self.ids = {raw_id: index for index, raw_id in enumerate(self.raw_ids)}
        known = read_json(facts, popular=list, step_seconds=int)
        self.popular = [item for item in known["popular"] if 0 <= item < len(self.raw_ids)]
        self.step_seconds = known["step_seconds"]
        # Facts of earlier versions name no ranking.
        self.served = served_by(self.loaded, generator, known.get("ranking", "generator"))
        self.max_history = int(self.loaded.config["max_history"])

    def answer(
        self, requests: Sequence[Request], *, k: int = 10, filter_seen: bool = False, beam: int = BEAM
    ) -> list[Answer]:
        """Answer each request with at most `k` items.

        Args:
            filter_seen: leave out the items of the history.
            beam: width of the search, at least `k`.

        Raises:
            UserError: k is below 1, or the times of a history cannot be read.
        """
        if k < 1:
            raise UserError(f"k is {k}", "it is the number of items of an answer", "give 1 or more")
        k = min(k, len(self.raw_ids))
        read = [self._read(request) for request in requests]
        answers: list[Answer | None] = [None] * len(read)
        # Histories of one length form a batch, so that an answer does not depend on what else was asked.
        by_length: dict[int, list[int]] = {}
        for row, (items, _, _) in enumerate(read):
            by_length.setdefault(len(items), []).append(row)
        for length, rows in by_length.items():
            for start in range(0, len(rows), BATCH):
                some = rows[start : start + BATCH]
                if length == 0:
                    for row in some:
                        answers[row] = self._popular(k, read[row][2])
                    continue
                outputs = self._search([read[row] for row in some], max(k, beam), length if filter_seen else 0)
                for index, row in enumerate(some):
                    answers[row] = self._answer(outputs, index, k, read[row][2])
        return [answer for answer in answers if answer is not None]

    def _search(self, batch: list[tuple[np.ndarray, np.ndarray, int]], beam: int, drop_seen: int) -> Outputs:
        items = np.concatenate([items for items, _, _ in batch])
        times = np.concatenate([times for _, times, _ in batch])
        with self.one_search:
            return self.served.generate(
                items,
                np.arange(len(batch) + 1) * len(batch[0][0]),
                beam=beam,
                drop_seen=drop_seen,
                times=times if self.loaded.model.wants_times else None,
            )

    def _read(self, request: Request) -> tuple[np.ndarray, np.ndarray, int]:
        """Return (item ids, int64 seconds, number of unknown ids); the most recent `max_history` known items."""
        found = [self._find(name) for name in request.history]
        known = np.array([index >= 0 for index in found], bool)
        items = np.array(found, np.int64)[known]
        if request.times is None:
            seconds = self.step_seconds * np.arange(len(items), dtype=np.int64)
        else:
            seconds = _seconds(request.times, len(found))[known]
            order = np.argsort(seconds, kind="stable")
            items, seconds = items[order], seconds[order]
        recent = slice(-self.max_history, None)
        return items[recent], seconds[recent], int((~known).sum())

    def _find(self, name: Any) -> int:
        """Return the item id of a raw id by the rule of `raw_ids.find_ids`, -1 where it is not known."""
        text = str(name)
        for form in (text, text.strip(), whole_number(text.strip())):
            if form is not None and form in self.ids:
                return self.ids[form]
        return -1

    def _popular(self, k: int, unknown: int) -> Answer:
        items = self.popular[:k]
        return Answer([self.raw_ids[i] for i in items], [self.titles[i] for i in items], [], unknown, "popular")

    def _answer(self, outputs: Outputs, row: int, k: int, unknown: int) -> Answer:
        filled = outputs.items_WK[row] >= 0
        items = outputs.items_WK[row][filled][:k].tolist()
        scores = outputs.scores_WK[row][filled][:k].tolist()
        source = "model" if items else "none"
        return Answer([self.raw_ids[i] for i in items], [self.titles[i] for i in items], scores, unknown, source)


def _seconds(times: Sequence[Any], items: int) -> np.ndarray:
    """Return int64 seconds of times in any form that a log may have. Raises UserError where one cannot be read."""
    if len(times) != items:
        raise UserError(
            f"the history has {items:,} items and {len(times):,} times",
            "each time belongs to the item at the same position",
            "give one time for each item, or no times",
        )
    texts = [time.isoformat() if hasattr(time, "isoformat") else _plain(time) for time in times]
    column = TimeColumn("auto")
    microseconds, complaints = column.read(pa.array(texts, pa.string()))
    wrong = [index for index, value in enumerate(microseconds.to_pylist()) if value is None]
    if wrong:
        raise UserError(
            f"the time {shown(texts[wrong[0]])} cannot be read",
            str(first_reasons(complaints, len(texts))[wrong[0]]),
            "write a time such as 2024-09-05T12:32:27Z or 1725539547",
        )
    return np.asarray(microseconds.to_numpy(zero_copy_only=False), np.int64) // MICROSECONDS


def _plain(time: Any) -> str:
    """Return a number without the .0 that JSON and pandas add to it."""
    text = str(time)
    return whole_number(text) or text
