"""Which tokens of a history a trained model keeps, item by item."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SPLITS
from pipeline.backbones.generator import Generator
from pipeline.backbones.histories import Histories
from pipeline.evaluate.recommend import model_and_history

DROPPED = "-"


@dataclass(frozen=True)
class ItemTokens:
    """An item of the history. codes: its Semantic ID; kept: for each code whether it goes on, then the separator."""

    item: str
    title: str
    codes: list[int]
    kept: list[bool]


def explain(*, user: str | None = None, history: Sequence[str] | None = None, interactions: Path = INTERACTIONS,
            splits: Path = SPLITS, generator: Path = GENERATOR,
            reports: Path = REPORTS) -> tuple[Generator, list[ItemTokens]]:
    """The items that the model sees of a user or of raw item ids, oldest first. Arguments and errors as `recommend`."""
    loaded, items, _ = model_and_history(user, history, interactions=interactions, splits=splits, generator=generator,
                                         reports=reports)
    with torch.no_grad():
        kept_NS = loaded.model.kept_tokens(Histories.pack(items, np.array([0, len(items)])))
    codes_NL = loaded.catalogue.codes_IL[torch.from_numpy(items.astype(np.int64))]
    titles = loaded.items["title"] if "title" in loaded.items else pd.Series("", index=loaded.items.index)
    return loaded, [ItemTokens(str(loaded.items["raw_id"][item]), "" if pd.isna(titles[item]) else str(titles[item]),
                               codes, kept)
                    for item, codes, kept in zip(items, codes_NL.tolist(), kept_NS.tolist(), strict=True)]


def report(loaded: Generator, rows: Sequence[ItemTokens]) -> str:
    """A table: one line per item, a dropped code as a dash; after the last code `|` where the separator stays."""
    strategy, shortener = loaded.config["strategy"], loaded.model.shortener
    kept, tokens = sum(sum(row.kept) for row in rows), sum(len(row.kept) for row in rows)
    lines = [f"{strategy}: {kept} of {tokens} tokens of {len(rows)} items are kept"]
    if shortener is not None:
        lines[0] += f" after encoder block {shortener.after_layer}" + ("" if shortener.at_eval else ", in training")
    name = max(len(row.item) for row in rows)
    width = max(len(str(code)) for row in rows for code in row.codes)
    for row in rows:
        marks = [f"{code if stays else DROPPED:>{width}}" for code, stays in zip(row.codes, row.kept, strict=False)]
        separator = ["|" if stays else DROPPED for stays in row.kept[len(row.codes):]]
        lines.append(f"  {row.item:{name}}  {' '.join([*marks, *separator])}  {row.title}".rstrip())
    return "\n".join(lines)
