"""One item's Semantic ID, and which items stand below each of its prefixes: `python -m pipeline sids`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.artifacts import INTERACTIONS, SIDS, Interactions, Sids, read_parquet
from pipeline.errors import UserError
from pipeline.raw_ids import dense_ids


@dataclass(frozen=True)
class Prefix:
    """codes: the first codes of the item's Semantic ID. items: how many items have them. others: titles (raw ids where
    there is none) of some of the other ones, by item id."""

    codes: list[int]
    items: int
    others: list[str]


@dataclass(frozen=True)
class ItemSid:
    """digit: the deduplication digit, None where Semantic IDs have none. prefixes: the shortest first."""

    item: str
    title: str
    codes: list[int]
    digit: int | None
    prefixes: list[Prefix]


def look_up(item: str, titles: int = 5, *, interactions: Path = INTERACTIONS, sids: Path = SIDS) -> ItemSid:
    """The Semantic ID of the item with that raw id.

    Args:
        titles: other items that each prefix names, at most.

    Raises:
        UserError: the item is not known, or the files are missing, damaged or of different logs.
    """
    path = Interactions(interactions).items
    items, read = read_parquet(path), Sids.read(sids)
    if len(items) != len(read.codes_IL):
        raise UserError(
            f"{path} lists {len(items):,} items, {sids} has {len(read.codes_IL):,}",
            "they were made from different logs",
            "run `dvc repro`, or `dvc checkout`",
        )
    number = int(dense_ids([item], items, "item", path)[0])
    names_I = items["title"].fillna(items["raw_id"]) if "title" in items else items["raw_id"]
    codes_IL = read.codes_IL[:, :-1] if read.digit else read.codes_IL
    below_IL = np.logical_and.accumulate(codes_IL == codes_IL[number], axis=1)
    item_codes = codes_IL[number].tolist()
    prefixes = [
        Prefix(item_codes[: level + 1], int(below_I.sum()), _others(names_I, below_I, number, titles))
        for level, below_I in enumerate(below_IL.T)
    ]
    return ItemSid(
        item,
        "" if names_I[number] == item else str(names_I[number]),
        item_codes,
        int(read.codes_IL[number, -1]) if read.digit else None,
        prefixes,
    )


def sid_text(found: ItemSid) -> str:
    """The codes, then one block per prefix."""
    digit = "" if found.digit is None else f", deduplication digit {found.digit}"
    lines = [f"{found.item}  {found.title}".rstrip(), f"codes {' '.join(map(str, found.codes))}{digit}"]
    for prefix in found.prefixes:
        left = prefix.items - 1 - len(prefix.others)
        count = "only this item" if prefix.items == 1 else f"{prefix.items:,} items, among them"
        lines += [f"{' '.join(map(str, prefix.codes))}: {count}", *(f"    {name}" for name in prefix.others)]
        lines += [f"    and {left:,} more"] if left else []
    return "\n".join(lines)


def _others(names_I: pd.Series, below_I: np.ndarray, number: int, titles: int) -> list[str]:
    rows = np.flatnonzero(below_I)
    return [str(names_I[row]) for row in rows[rows != number][:titles]]
