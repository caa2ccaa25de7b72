"""Find the raw ids of the rows of a vector file: which of its columns names the items.

A file may carry the ids under any name. A column that the project writes, `raw_id`, is always the one. Otherwise a
column is it if its values are known items; a column with a usual name for ids (`ID_NAMES`) goes before the others, and
a column that usually numbers the rows (`ROW_NUMBERS`) comes last.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.printing import shown
from pipeline.raw_ids import whole_number

WRITTEN_NAME = "raw_id"  # the name that the project itself writes
WRITTEN = "rawid"  # the same without the underscore
# Names that ids usually have, in lower case, without underscores, dashes, dots and blanks, and without a plural's s.
ID_NAMES = (
    *(WRITTEN, "id", "key", "item", "itemid", "itemkey", "iid", "asin", "parentasin", "sku", "isbn", "ean", "gtin"),
    *("product", "productid", "movieid", "videoid", "articleid", "newsid", "bookid", "songid", "trackid", "artistid"),
    *("gameid", "appid", "goodsid", "businessid", "poiid", "contentid", "docid", "documentid", "objectid", "entityid"),
)
ROW_NUMBERS = ("", "index", "indexlevel0", "level0", "unnamed0", "row", "rownumber")


# Every text that `whole_number` reads matches it.
MAYBE_WHOLE = r"^-?[0-9]+(\.[0-9]*)?([eE]\+?[0-9]{1,2})?$"
PLAIN_WHOLE = r"^(0|-?[1-9][0-9]*)$"  # a whole number whose digits `whole_number` returns as they are


@dataclass(frozen=True)
class VectorIds:
    """A column of a vector file that could hold the items' raw ids.

    ids: large_string, the text of each row, null where it is missing. numeric: whether the file holds them as numbers.
    """

    name: str
    ids: pa.Array
    numeric: bool

    @property
    def plain(self) -> str:
        plain = re.sub(r"[\W_]", "", self.name).lower()
        return plain if plain in ROW_NUMBERS or len(plain) < 3 else plain.removesuffix("s")

    @property
    def unique(self) -> bool:
        return bool(pc.count_distinct(self.ids).as_py() == len(self.ids) - self.ids.null_count)


def possible_ids(name: str, values: Iterable[Any]) -> VectorIds | None:
    """Return the column, or None if its values cannot be ids, such as fractions or flags.

    Integers and integral floats give the same text (7 and 7.0). Blanks around a text do not count.

    Args:
        name: what the file calls the column.
        values: of Python, or a column of Arrow.
    """
    if isinstance(values, pa.ChunkedArray):
        texts = _as_texts(values)
        if texts is not None:
            return VectorIds(name, texts, pa.types.is_integer(values.type))
        values = values.to_pylist()
    ids: list[str | None] = []
    numeric = False
    for value in values:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            ids.append(None)
        elif isinstance(value, bool):
            return None
        elif isinstance(value, int | float | Decimal):
            if not isinstance(value, int) and not (math.isfinite(value) and value == int(value)):
                return None
            numeric = True
            ids.append(str(int(value)))
        elif isinstance(value, str | bytes):
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            ids.append(text.strip() or None)
        else:
            return None
    return VectorIds(name, pa.array(ids, pa.large_string()), numeric)


def _as_texts(values: pa.ChunkedArray) -> pa.Array | None:
    """Return texts and integers as `possible_ids` does, without a Python object for each; None for other types."""
    kind = values.type
    if pa.types.is_integer(kind) and len(values) > values.null_count:
        return _joined(values.cast(pa.large_string()))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = pc.utf8_trim_whitespace(values.cast(pa.large_string()))
        return _joined(pc.if_else(pc.equal(texts, ""), None, texts))
    return None


def _joined(values: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)


def choose_ids(columns: Sequence[VectorIds], items: pa.Array, path: Path) -> VectorIds | None:
    """Return the column that names the items, or None if the file has no ids.

    Args:
        columns: all columns that could hold ids.
        items: raw ids of the items, large_string.
        path: the file, for messages.

    Raises:
        UserError: a column has a name for ids and none of its values is an item, or two columns contradict each other.
    """
    columns = [_as_items_are_written(column, items) for column in columns]
    written = [column for column in columns if column.plain == WRITTEN]
    if written:
        return written[0]
    # Columns of usual names, of other names, and of row numbers, each with the number of its ids that are known.
    tiers: list[list[tuple[int, VectorIds]]] = [[], [], []]
    for column in columns:
        values = pc.unique(column.ids.drop_null())
        hits = pc.sum(pc.is_in(values, value_set=items)).as_py() or 0
        named = column.plain in ID_NAMES
        if hits and (named or _looks_like_ids(column, hits, len(values), len(items))):
            tiers[0 if named else 2 if column.plain in ROW_NUMBERS else 1].append((hits, column))
    best = next((tier for tier in tiers if tier), None)
    if best is None:
        _refuse_unknown(columns, items, path)
        return None
    most = max(hits for hits, _ in best)
    first, *others = [column for hits, column in best if hits == most]
    if differing := [other for other in others if _rows(other, items) != _rows(first, items)]:
        raise UserError(
            f"{path}: {shown(first.name)} and {shown(differing[0].name)} could both be the items' ids, and they differ",
            "one column must say which item a vector belongs to",
            "name that column raw_id, or take the other one out of the file",
        )
    return first


def _as_items_are_written(column: VectorIds, items: pa.Array) -> VectorIds:
    """Return the column with the numbers of items (7 or 7.0) as the items have them."""
    # items 7.0 and b: the value 7 becomes 7.0; a value that is an item already stays
    numbers = pc.fill_null(pc.match_substring_regex(column.ids, MAYBE_WHOLE), False)
    if not pc.any(numbers, min_count=0).as_py():
        return column
    numbers = pc.and_not(numbers, pc.is_in(column.ids, value_set=items))
    if not pc.any(numbers, min_count=0).as_py():
        return column
    item_numbers = items.filter(pc.match_substring_regex(items, MAYBE_WHOLE))
    if pc.all(pc.match_substring_regex(item_numbers, PLAIN_WHOLE), min_count=0).as_py():
        # Items are written plainly, and a plain number that is unknown stays so: only the others may be an item.
        numbers = pc.and_not(numbers, pc.fill_null(pc.match_substring_regex(column.ids, PLAIN_WHOLE), False))
        if not pc.any(numbers, min_count=0).as_py():
            return column
    written = {_whole(raw_id): raw_id for raw_id in reversed(item_numbers.to_pylist())}
    ids = [written.get(_whole(raw_id), raw_id) for raw_id in column.ids.filter(numbers).to_pylist()]
    return replace(column, ids=pc.replace_with_mask(column.ids, numbers, pa.array(ids, pa.large_string())))


def _whole(text: str) -> str:
    return whole_number(text) or text


def _looks_like_ids(column: VectorIds, hits: int, values: int, items: int) -> bool:
    """Tell whether a column of an unusual name with `hits` known values holds ids, and not some other property."""
    present = column.ids.drop_null()
    looks_whole = pc.all(pc.match_substring_regex(present, MAYBE_WHOLE), min_count=0).as_py()
    if column.numeric or (looks_whole and all(whole_number(raw_id) for raw_id in present.to_pylist())):
        # A price or a year may be the number of an item by chance.
        return column.unique and 2 * hits >= min(values, items)
    return column.unique or 2 * values > len(column.ids)  # several rows of one item are refused later, by name


def _rows(column: VectorIds, items: pa.Array) -> dict[str, int]:
    known = set(items.to_pylist())
    return {raw_id: row for row, raw_id in enumerate(column.ids.to_pylist()) if raw_id in known and raw_id is not None}


def _refuse_unknown(columns: Sequence[VectorIds], items: pa.Array, path: Path) -> None:
    """Refuse a file whose ids are certainly ids, by their name, and not those of the items."""
    for column in columns:
        if column.plain in ID_NAMES:
            first = column.ids.drop_null().slice(0, 3).to_pylist()
            raise UserError(
                f"none of the ids in {path} ({shown(column.name)}: {', '.join(map(shown, first)) or 'all missing'}) "
                "is an item of the log",
                f"the items are called {', '.join(map(shown, items.slice(0, 3).to_pylist()))}, so it is not known "
                "which vector belongs to which item",
                "write the raw ids of the log into it, or, if row i belongs to item i, set embed.match to order",
            )
