"""Look up one item's Semantic ID and the items below each of its prefixes, for `python -m pipeline sids`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.artifacts import INTERACTIONS, SIDS, Interactions, Sids, read_json, read_parquet
from pipeline.errors import UserError
from pipeline.printing import shown
from pipeline.raw_ids import dense_ids, naming_the_cut


@dataclass(frozen=True)
class Prefix:
    """A prefix of an item's Semantic ID.

    codes: the first codes of the Semantic ID. items: how many items have these codes, the item included. others: titles
    (raw ids of items without a title) of some of the other items, by item id.
    """

    codes: list[int]
    items: int
    others: list[str]


@dataclass(frozen=True)
class ItemSid:
    """An item, its Semantic ID and its prefixes.

    item: raw id. digit: the deduplication digit, None if Semantic IDs have none. prefixes: from short to long.
    """

    item: str
    title: str
    codes: list[int]
    digit: int | None
    prefixes: list[Prefix]


def look_up(
    item: str,
    titles: int = 5,
    *,
    interactions: Path = INTERACTIONS,
    sids: Path = SIDS,
    model: Path | None = None,
) -> ItemSid:
    """Look up the Semantic ID of the item with that raw id.

    Args:
        titles: the most other items that each prefix names.
        model: a folder like models/generator, whose items and Semantic IDs are read in place of the pipeline's.

    Raises:
        UserError: the item is not known, or the files are missing, damaged or of different logs.
    """
    return look_up_all([item], titles, interactions=interactions, sids=sids, model=model)[0]


def look_up_all(
    items: Sequence[str],
    titles: int = 5,
    *,
    interactions: Path = INTERACTIONS,
    sids: Path = SIDS,
    model: Path | None = None,
) -> list[ItemSid]:
    """Look up several items; the files are read once. Arguments and errors are those of `look_up`."""
    path = model / "items.parquet" if model else Interactions(interactions).items
    catalogue, codes_IL, has_digit = _of_model(model, path) if model else _of_stages(path, sids)
    with naming_the_cut(Interactions(interactions).cut):
        numbers = dense_ids(items, catalogue, "item", path)
    names_I = catalogue["title"].fillna(catalogue["raw_id"]) if "title" in catalogue else catalogue["raw_id"]
    digits_I = codes_IL[:, -1] if has_digit else None
    codes_IL = codes_IL[:, :-1] if has_digit else codes_IL
    return [
        _sid(item, int(number), names_I, codes_IL, digits_I, titles)
        for item, number in zip(items, numbers, strict=True)
    ]


def _sid(
    item: str, number: int, names_I: pd.Series, codes_IL: np.ndarray, digits_I: np.ndarray | None, titles: int
) -> ItemSid:
    # codes of the item 2 1 5, of another item 2 1 7 -> the other's row of below_IL is 1 1 0
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
        None if digits_I is None else int(digits_I[number]),
        prefixes,
    )


def _of_stages(path: Path, sids: Path) -> tuple[pd.DataFrame, np.ndarray, bool]:
    """Return the items that ingest lists, their Semantic IDs (int32 [I, L]), and whether the last level is a digit."""
    items = read_parquet(path)
    read = Sids.read(sids)
    if len(items) != len(read.codes_IL):
        raise UserError(
            f"{path} lists {len(items):,} items, {sids} has {len(read.codes_IL):,}",
            "the two were made from different logs",
            "run `dvc repro`, or `dvc checkout` for the files of this commit",
        )
    return items, read.codes_IL, read.digit


def _of_model(folder: Path, path: Path) -> tuple[pd.DataFrame, np.ndarray, bool]:
    """Return what `_of_stages` does, from the files of a trained model."""
    config = read_json(folder / "config.json", widths=list)
    items = read_parquet(path)
    names = [f"code_{level + 1}" for level in range(len(config["widths"]))]
    if missing := [name for name in ("raw_id", *names) if name not in items]:
        raise UserError(
            f"{path} has no column {missing[0]}",
            f"{folder} is no trained model, or its files come from different runs",
            "give --model a copy of models/generator",
        )
    return items, items[names].to_numpy(np.int32), bool(config.get("digit", True))


def sid_text(found: ItemSid) -> str:
    """Write the codes as text, then one block per prefix."""
    digit = "" if found.digit is None else f", deduplication digit {found.digit}"
    lines = [f"{shown(found.item)}  {shown(found.title)}".rstrip(), f"codes {' '.join(map(str, found.codes))}{digit}"]
    for prefix in found.prefixes:
        left = prefix.items - 1 - len(prefix.others)
        count = "only this item" if prefix.items == 1 else f"{prefix.items:,} items, among them"
        lines += [f"{' '.join(map(str, prefix.codes))}: {count}", *(f"    {shown(name)}" for name in prefix.others)]
        lines += [f"    and {left:,} more"] if left else []
    return "\n".join(lines)


def _others(names_I: pd.Series, below_I: np.ndarray, number: int, titles: int) -> list[str]:
    rows = np.flatnonzero(below_I)
    return [str(names_I[row]) for row in rows[rows != number][:titles]]
