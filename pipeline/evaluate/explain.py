"""What a trained model makes of the items of a history: which of their tokens it keeps (rastp), or how each spreads
over the codes of every level (intrr).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SPLITS
from pipeline.evaluate.recommend import model_and_history, names_of
from pipeline.generator import Generator
from pipeline.packing.histories import Histories

DROPPED = "-"


@dataclass(frozen=True)
class ItemTokens:
    """An item of the history. codes: its Semantic ID; kept: for each code whether it goes on, then the separator."""

    item: str
    title: str
    codes: list[int]
    kept: list[bool]


@dataclass(frozen=True)
class ItemWeights:
    """An item of the history. weights: of each level, the share of every code in the item's vector; they sum to 1."""

    item: str
    title: str
    codes: list[int]
    weights: list[list[float]]


ExplainedItems = Sequence[ItemTokens] | Sequence[ItemWeights]


def explain(
    *,
    user: str | None = None,
    history: Sequence[str] | None = None,
    interactions: Path = INTERACTIONS,
    splits: Path = SPLITS,
    generator: Path = GENERATOR,
    reports: Path = REPORTS,
) -> tuple[Generator, ExplainedItems]:
    """The items that the model sees of a user or of raw item ids, oldest first. Arguments and errors as `recommend`."""
    loaded, known = model_and_history(
        user, history, interactions=interactions, splits=splits, generator=generator, reports=reports
    )
    items = known.items if known.kept is None or known.kept.stays_N is None else known.items[known.kept.stays_N]
    weights = code_weights(loaded, items)
    if weights is not None:
        return loaded, weights
    return loaded, _tokens_of(loaded, items, known.kept.tokens_NS if known.kept else None)


def _tokens_of(loaded: Generator, items: np.ndarray, kept_NS: np.ndarray | None) -> list[ItemTokens]:
    """kept_NS: what enters the encoder, where it is not all; nothing is pruned within it then."""
    if kept_NS is None:
        with torch.no_grad():
            kept_NS = loaded.model.kept_tokens(Histories.pack(items, np.array([0, len(items)]))).numpy()
    return [ItemTokens(*named, kept) for named, kept in zip(_named(loaded, items), kept_NS.tolist(), strict=True)]


def code_weights(loaded: Generator, items: np.ndarray) -> list[ItemWeights] | None:
    """Rows for item ids; None of a model whose histories hold the codes themselves."""
    shares = loaded.model.code_shares(torch.from_numpy(items.astype(np.int64)))
    if shares is None:
        return None
    return [
        ItemWeights(*named, [level[row].tolist() for level in shares])
        for row, named in enumerate(_named(loaded, items))
    ]


def _named(loaded: Generator, items: np.ndarray) -> Iterator[tuple[str, str, list[int]]]:
    """(raw id, title, Semantic ID) of each."""
    codes_NL = loaded.catalogue.codes_IL[torch.from_numpy(items.astype(np.int64))].tolist()
    for name, codes in zip(names_of(loaded, items), codes_NL, strict=True):
        yield *name, codes


def explanation_text(loaded: Generator, rows: ExplainedItems) -> str:
    """A table: one line per item."""
    if isinstance(rows[0], ItemWeights):
        return _weights_report(loaded, cast(Sequence[ItemWeights], rows))
    return _tokens_report(loaded, cast(Sequence[ItemTokens], rows))


def _weights_report(loaded: Generator, rows: Sequence[ItemWeights]) -> str:
    """Of each level the item's code and its share, and in brackets the code that has a larger one."""
    cells = [[_share(code, weights) for code, weights in zip(row.codes, row.weights, strict=True)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    name = max(len(row.item) for row in rows)
    lines = [
        f"{loaded.config['strategy']}: of each level the item's code and its share in the item's vector, in "
        "brackets a code with more"
    ]
    for row, row_cells in zip(rows, cells, strict=True):
        spread = "  ".join(f"{cell:{width}}" for cell, width in zip(row_cells, widths, strict=True))
        lines.append(f"  {row.item:{name}}  {spread}  {row.title}".rstrip())
    return "\n".join(lines)


def _share(code: int, weights: list[float]) -> str:
    best = int(np.argmax(weights))
    return f"{code} {weights[code]:.2f}" + (f" ({best} {weights[best]:.2f})" if best != code else "")


def _tokens_report(loaded: Generator, rows: Sequence[ItemTokens]) -> str:
    """A dropped code as a dash; after the last code `|` where the separator stays."""
    strategy, pruner = loaded.config["strategy"], loaded.model.pruner
    kept, tokens = sum(sum(row.kept) for row in rows), sum(len(row.kept) for row in rows)
    lines = [f"{strategy}: {kept} of {tokens} tokens of {len(rows)} items are kept"]
    if pruner is not None:
        lines[0] += f" after encoder block {pruner.after_layer}" + ("" if pruner.at_eval else ", in training")
    name = max(len(row.item) for row in rows)
    width = max(len(str(code)) for row in rows for code in row.codes)
    for row in rows:
        marks = [f"{code if stays else DROPPED:>{width}}" for code, stays in zip(row.codes, row.kept, strict=False)]
        separator = ["|" if stays else DROPPED for stays in row.kept[len(row.codes) :]]
        lines.append(f"  {row.item:{name}}  {' '.join([*marks, *separator])}  {row.title}".rstrip())
    return "\n".join(lines)
