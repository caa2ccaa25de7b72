"""Show how a trained model reads the items of a history.

Under rastp it shows which tokens of an item are kept, under intrr how an item spreads over the codes of every level.

Shape legend: N items of the history, S tokens of one item (its codes, then the separator or the action), L code levels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SPLITS
from pipeline.evaluate.recommend import model_and_history, names_of
from pipeline.evaluate.typed_history import Entry
from pipeline.generator import Generator
from pipeline.packing.histories import Histories
from pipeline.printing import shown

DROPPED = "-"


@dataclass(frozen=True)
class ItemTokens:
    """An item of the history has tokens, some of them kept.

    codes: the item's Semantic ID. kept: for each code, then for the separator or the action, whether it is kept.
    """

    item: str
    title: str
    codes: list[int]
    kept: list[bool]


@dataclass(frozen=True)
class ItemWeights:
    """An item of the history is a mixture of the codes of each level.

    codes: the item's Semantic ID. weights: for each level, the share of every code in the item's vector; the shares
    of a level sum to 1.
    """

    item: str
    title: str
    codes: list[int]
    weights: list[list[float]]


ExplainedItems = Sequence[ItemTokens] | Sequence[ItemWeights]


def explain(
    *,
    user: str | None = None,
    history: Sequence[Entry] | None = None,
    interactions: Path = INTERACTIONS,
    splits: Path = SPLITS,
    generator: Path = GENERATOR,
    reports: Path = REPORTS,
) -> tuple[Generator, ExplainedItems]:
    """Return the model, and the items that it sees of a user or of raw item ids, oldest first.

    Arguments and errors are those of `recommend`.
    """
    loaded, known = model_and_history(
        user, history, interactions=interactions, splits=splits, generator=generator, reports=reports
    )
    items = known.items
    if known.kept is not None and known.kept.stays_N is not None:
        items = items[known.kept.stays_N]
    weights = code_weights(loaded, items)
    if weights is not None:
        return loaded, weights
    return loaded, _tokens_of(loaded, items, known.kept.tokens_NS if known.kept else None)


def _tokens_of(loaded: Generator, items: np.ndarray, kept_NS: np.ndarray | None) -> list[ItemTokens]:
    """Return the tokens of the items.

    Args:
        kept_NS: tokens that enter the encoder, where some are skipped; none of them is pruned then. None: all enter,
            and the model says which it keeps.
    """
    if kept_NS is None:
        with torch.no_grad():
            kept_NS = loaded.model.kept_tokens(Histories.pack(items, np.array([0, len(items)]))).numpy()
    return [ItemTokens(*named, kept) for named, kept in zip(_named(loaded, items), kept_NS.tolist(), strict=True)]


def code_weights(loaded: Generator, items: np.ndarray) -> list[ItemWeights] | None:
    """Return the weights of items (ids [N]); None for a model whose histories hold the codes themselves."""
    shares = loaded.model.code_shares(torch.from_numpy(items.astype(np.int64)))
    if shares is None:
        return None
    return [
        ItemWeights(*named, [level[row].tolist() for level in shares])
        for row, named in enumerate(_named(loaded, items))
    ]


def _named(loaded: Generator, items: np.ndarray) -> Iterator[tuple[str, str, list[int]]]:
    """Give (raw id, title, Semantic ID) of each item."""
    codes_NL = loaded.catalogue.codes_IL[torch.from_numpy(items.astype(np.int64))].tolist()
    for name, codes in zip(names_of(loaded, items), codes_NL, strict=True):
        yield *name, codes


def explanation_text(loaded: Generator, rows: ExplainedItems) -> str:
    """Return a table with one line per item."""
    weights = [row for row in rows if isinstance(row, ItemWeights)]
    tokens = [row for row in rows if isinstance(row, ItemTokens)]
    return _weights_report(loaded, weights) if weights else _tokens_report(loaded, tokens)


def _weights_report(loaded: Generator, rows: Sequence[ItemWeights]) -> str:
    """Show for each level the item's code and its share, and in brackets a code that has a larger share."""
    cells = [[_share(code, weights) for code, weights in zip(row.codes, row.weights, strict=True)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    name = max(len(shown(row.item)) for row in rows)
    lines = [
        f"{loaded.config['strategy']}: of each level the item's code and its share in the item's vector, in "
        "brackets a code with more"
    ]
    for row, row_cells in zip(rows, cells, strict=True):
        spread = "  ".join(f"{cell:{width}}" for cell, width in zip(row_cells, widths, strict=True))
        lines.append(f"  {shown(row.item):{name}}  {spread}  {shown(row.title)}".rstrip())
    return "\n".join(lines)


def _share(code: int, weights: list[float]) -> str:
    """Return `3 0.62`, or `3 0.20 (7 0.55)` where another code has the largest share."""
    best = int(np.argmax(weights))
    return f"{code} {weights[code]:.2f}" + (f" ({best} {weights[best]:.2f})" if best != code else "")


def _tokens_report(loaded: Generator, rows: Sequence[ItemTokens]) -> str:
    """Show a dropped code as a dash, and behind the last code `|` where the separator or the action is."""
    strategy = loaded.config["strategy"]
    pruner = loaded.model.pruner
    kept = sum(sum(row.kept) for row in rows)
    tokens = sum(len(row.kept) for row in rows)
    lines = [f"{strategy}: {kept} of {tokens} tokens of {len(rows)} items are kept"]
    if pruner is not None:
        lines[0] += f" after encoder block {pruner.after_layer}" + ("" if pruner.at_eval else ", in training only")
    name = max(len(shown(row.item)) for row in rows)
    width = max(len(str(code)) for row in rows for code in row.codes)
    for row in rows:
        marks = [f"{code if stays else DROPPED:>{width}}" for code, stays in zip(row.codes, row.kept, strict=False)]
        last = ["|" if stays else DROPPED for stays in row.kept[len(row.codes) :]]
        lines.append(f"  {shown(row.item):{name}}  {' '.join([*marks, *last])}  {shown(row.title)}".rstrip())
    return "\n".join(lines)
