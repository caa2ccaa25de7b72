"""Make a log of any size, its item file and item vectors, a block at a time, so that no size needs much memory.

A fourteenth as many users as events have log-normal histories of 5 to 400 events. Items lie in clusters of 500; half of
a user's events fall evenly into the three clusters of this user, the other half follow Zipf's law over all items. Rows
are in the order of time. An item has a title of nine words, a category, and a vector near that of its cluster. Equal
arguments make equal files.

Shape legend: U users, E events of a slice of time, I items, C clusters, d width of the vectors.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

EVENTS_PER_USER = 14
SHORTEST, LONGEST = 5, 400  # events of a user
CLUSTER = 500  # items of a cluster
CLUSTERS_OF_A_USER = 3
SLICE = 1_000_000  # events of a slice of time, about
BLOCK = 100_000  # items written at once
FIRST_SECOND, SECONDS = 1_600_000_000, 100_000_000  # the span of the log's times
WORDS = 3000  # words that titles are made of, a third of them common to all clusters
FACTS = "scale.json"  # how a folder was made
FORMATS = ("parquet", "csv", "jsonl")
VECTORS = ("none", "parquet", "npy")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Say what to make. width: of the item vectors; 0 makes none."""

    events: int
    items: int
    width: int
    format: str = "parquet"
    vectors: str = "parquet"
    listed: bool = True  # write an item file
    seed: int = 0

    @property
    def users(self) -> int:
        return max(self.events // EVENTS_PER_USER, 10)


def make(folder: Path, sizes: Sizes) -> None:
    """Write interactions.FORMAT, items.parquet, beside them vectors/items.parquet (or .npy), and scale.json."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    log.mkdir(exist_ok=True)
    _write(log / f"interactions.{sizes.format}", events(sizes))
    if sizes.listed:
        _write(log / "items.parquet", item_texts(sizes))
    if sizes.width and sizes.vectors == "parquet":
        blocks = (pa.table({"raw_id": ids, "vector": _lists(rows_Id)}) for ids, rows_Id in item_vectors(sizes))
        _write(folder / "vectors.parquet", blocks)
    elif sizes.width and sizes.vectors == "npy":
        shape = (sizes.items, sizes.width)
        array = np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float32, shape=shape)
        for start, (_, rows_Id) in zip(range(0, sizes.items, BLOCK), item_vectors(sizes), strict=True):
            array[start : start + BLOCK] = rows_Id
        array.flush()
    (folder / FACTS).write_text(json.dumps({**asdict(sizes), "users": sizes.users}) + "\n")


# ------------------------------------------------------------------------------------------------ log


def events(sizes: Sizes) -> Iterator[pa.Table]:
    """Yield the log in slices of time: user, item, timestamp (seconds), rating."""
    rng = np.random.default_rng((sizes.seed, 1))
    remaining_U = lengths(sizes.events, sizes.users, rng)
    slices = max(1, math.ceil(remaining_U.sum() / SLICE))
    for number in range(slices):
        # An event of a user is in this slice with the chance that it is in any one of those that are left.
        taken_U = rng.binomial(remaining_U, 1 / (slices - number)).astype(np.int32)
        remaining_U -= taken_U
        user_E = np.repeat(np.arange(sizes.users), taken_U)
        first, end = (FIRST_SECOND + SECONDS * n // slices for n in (number, number + 1))
        time_E = np.sort(rng.integers(first, end, len(user_E)))
        user_E = rng.permutation(user_E)
        yield pa.table(
            {
                "user": _named("u", user_E),
                "item": _named("i", _items(user_E, sizes, rng)),
                "timestamp": time_E,
                "rating": rng.integers(1, 6, len(user_E)),
            }
        )


def lengths(total: int, users: int, rng: np.random.Generator) -> np.ndarray:
    """Return the number of events of each user, int32 [U], of which the mean is near total / users."""
    # A log-normal of shape 0.8, cut at both ends; its scale is found by bisection on a sample.
    normal = rng.standard_normal(10_000)
    low, high = -5.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        too_long = _cut(middle + 0.8 * normal).mean() > total / users
        low, high = (low, middle) if too_long else (middle, high)
    lengths_U: np.ndarray = _cut(low + 0.8 * rng.standard_normal(users)).astype(np.int32)
    return lengths_U


def _cut(logarithms: np.ndarray) -> np.ndarray:
    cut: np.ndarray = np.clip(np.exp(logarithms), SHORTEST, LONGEST)
    return cut


def _items(user_E: np.ndarray, sizes: Sizes, rng: np.random.Generator) -> np.ndarray:
    """Return the item of each event, int64 [E]."""
    clusters = max(1, sizes.items // CLUSTER)
    which_E = rng.integers(0, CLUSTERS_OF_A_USER, len(user_E))
    cluster_E = _mixed(user_E * CLUSTERS_OF_A_USER + which_E, sizes.seed) % clusters
    inside_E = rng.integers(0, min(CLUSTER, sizes.items), len(user_E))
    near_E = cluster_E.astype(np.int64) * CLUSTER + inside_E

    # ranks by Zipf's law, by the inverse of its distribution; a rank's item lies anywhere
    rank_E = np.minimum((sizes.items + 1) ** rng.random(len(user_E)) - 1, sizes.items - 1).astype(np.int64)
    popular_E = rank_E * _stride(sizes.items) % sizes.items
    return np.where(rng.random(len(user_E)) < 0.5, near_E, popular_E)


def _stride(items: int) -> int:
    """Return a number without a common divisor with `items`, so that its multiples reach every item."""
    stride = int(items * 0.618) | 1
    while math.gcd(stride, items) > 1:
        stride += 2
    return stride


def _mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """Return well mixed uint64 (splitmix64) of integers."""
    mixed = (values + seed * 1_000_003).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: np.ndarray = mixed ^ (mixed >> np.uint64(31))
    return result


def _named(letter: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(letter, pc.cast(pa.array(numbers), pa.string()), "")


# ------------------------------------------------------------------------------------------------ items


def item_texts(sizes: Sizes) -> Iterator[pa.Table]:
    """Yield the item file in blocks: item, title, categories."""
    rng = np.random.default_rng((sizes.seed, 2))
    words = pa.array([f"word{number:04}" for number in rng.permutation(WORDS)])
    for start in range(0, sizes.items, BLOCK):
        items = np.arange(start, min(start + BLOCK, sizes.items))
        common = [rng.integers(0, WORDS // 3, len(items)) for _ in range(6)]
        of_cluster = [
            WORDS // 3 + (items // CLUSTER * 20 + rng.integers(0, 20, len(items))) % (WORDS - WORDS // 3)
            for _ in range(3)
        ]
        title = pc.binary_join_element_wise(*(words.take(pa.array(w)) for w in (*of_cluster, *common)), " ")
        group, cluster = _named("group ", items // CLUSTER % 40), _named("cluster ", items // CLUSTER)
        categories = pc.binary_join_element_wise(group, cluster, " > ")
        yield pa.table({"item": _named("i", items), "title": title, "categories": categories})


def item_vectors(sizes: Sizes) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """Yield blocks of (raw ids, float32 [rows, d]): the centre of the item's cluster, and noise."""
    rng = np.random.default_rng((sizes.seed, 3))
    clusters = max(1, math.ceil(sizes.items / CLUSTER))
    groups_Gd = rng.standard_normal((40, sizes.width), np.float32)
    centres_Cd = groups_Gd[np.arange(clusters) % 40] + rng.standard_normal((clusters, sizes.width), np.float32)
    for start in range(0, sizes.items, BLOCK):
        items = np.arange(start, min(start + BLOCK, sizes.items))
        noise = rng.standard_normal((len(items), sizes.width), np.float32)
        yield _named("i", items), centres_Cd[items // CLUSTER] + np.float32(0.5) * noise


def _lists(rows_Id: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows_Id.ravel()), rows_Id.shape[1])


# ------------------------------------------------------------------------------------------------ files


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with _writer(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _writer(path: Path, schema: pa.Schema) -> "AbstractContextManager[pq.ParquetWriter | pacsv.CSVWriter | _JsonLines]":
    if path.suffix == ".parquet":
        writer: AbstractContextManager[pq.ParquetWriter] = pq.ParquetWriter(path, schema, compression="zstd")
        return writer
    if path.suffix == ".csv":
        lines: AbstractContextManager[pacsv.CSVWriter] = pacsv.CSVWriter(path, schema)
        return lines
    return _JsonLines(path)


class _JsonLines:
    """Writes tables as JSON lines; texts must need no escape."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "_JsonLines":
        self.file = self.path.open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write_table(self, table: pa.Table) -> None:
        fields: list[pa.Array | str] = []
        for name in table.column_names:
            quote = '"' if pa.types.is_string(table.schema.field(name).type) else ""
            fields += [f'{", " if fields else "{"}"{name}": {quote}', table[name].cast(pa.string()), quote]
        lines = pc.binary_join_element_wise(*fields, "}\n", "")
        for text in lines.to_pylist():
            self.file.write(text.encode())
