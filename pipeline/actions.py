"""Say what users did with the items that they were shown: the columns of actions, and the values that they take.

`ingest.actions` names the columns and gives each its edges. The value of a number is how many edges it reaches: with
watch_seconds: [3, 10] the values 0, 1 and 2 are less than 3 seconds, 3 to 10, and 10 or more. A missing number has the
value 0, which means none.

The edge `median` divides at the item's median: 1 where the number is above the median of the item's exposures in the
training part.

Shape legend: X exposures, A columns of actions, I items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

MEDIAN = "median"
Edge = float | Literal["median"]
MOST_COLUMNS = 16
MOST_EDGES = 250  # so that a value fits into a byte


@dataclass(frozen=True)
class Label:
    """A `Label` is a question that has the answer yes or no: whether the value of column `column` is `least` or more.

    name: the column and the edge, such as `watch_seconds>=10` or `watch_seconds>median`.
    """

    name: str
    column: int
    least: int


@dataclass(frozen=True)
class Actions:
    """`Actions` names the columns, in the order of `ingest.actions`, and holds the edges of each."""

    names: tuple[str, ...]
    edges: tuple[tuple[Edge, ...], ...]

    @classmethod
    def of(cls, json: Mapping[str, Any]) -> "Actions":
        """Return what `as_json` wrote."""
        return cls(tuple(json["names"]), tuple(tuple(edges) for edges in json["edges"]))

    def as_json(self) -> dict[str, Any]:
        """Return what ingest.json and splits.json hold under `actions`."""
        return {"names": list(self.names), "edges": [list(edges) for edges in self.edges]}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return how many values each column may take: one more than it has edges."""
        return tuple(len(edges) + 1 for edges in self.edges)

    @property
    def labels(self) -> list[Label]:
        """Return a label for each edge of each column."""
        return [
            Label(f"{name}>{MEDIAN}" if edge == MEDIAN else f"{name}>={edge:g}", column, least)
            for column, (name, edges) in enumerate(zip(self.names, self.edges, strict=True))
            for least, edge in enumerate(edges, start=1)
        ]

    def values(
        self, numbers: Mapping[str, np.ndarray], items_X: np.ndarray, medians: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Return the values of each column, uint8 [X, A].

        Args:
            numbers: float64 [X] by column, NaN where missing.
            items_X: the items of these rows.
            medians: float64 [I] of each column with the edge `median`, as `item_medians` returns it.
        """
        # edges 3, 10 and seconds 1, 3, 12, NaN -> 0 1 2 0
        columns = []
        for name, edges in zip(self.names, self.edges, strict=True):
            found = np.asarray(numbers[name], np.float64)
            if edges == (MEDIAN,):
                value = found > medians[name][items_X]
            else:
                value = np.searchsorted(np.asarray(edges, np.float64), found, side="right")
                value[np.isnan(found)] = 0
            columns.append(value.astype(np.uint8))
        return np.stack(columns, 1)


def item_medians(items_X: np.ndarray, numbers_X: np.ndarray, items: int) -> np.ndarray:
    """Return the median number of each item, float64 [items].

    An item without a number has the median of all numbers; without any number each median is 0. NaN is no number.
    """
    there = ~np.isnan(numbers_X)
    items_X, numbers_X = items_X[there], numbers_X[there]
    medians = np.full(items, float(np.median(numbers_X)) if len(numbers_X) else 0.0)
    # sorted by item, then number: item 4 has 1 5 9 at rows 10 to 12 -> its median is in row 11, twice
    order = np.lexsort((numbers_X, items_X))
    sorted_X = numbers_X[order]
    found, first, count = np.unique(items_X[order], return_index=True, return_counts=True)
    medians[found] = (sorted_X[first + (count - 1) // 2] + sorted_X[first + count // 2]) / 2
    return medians


def check_edges(name: str, edges: tuple[Edge, ...]) -> None:
    """Check the edges of one column.

    Raises:
        ValueError: there are none or too many, they do not ascend, or `median` stands beside others.
    """
    if not edges or len(edges) > MOST_EDGES:
        raise ValueError(f"ingest.actions.{name} has {len(edges)} edges, expected 1 to {MOST_EDGES}")
    if MEDIAN in edges:
        if edges != (MEDIAN,):
            raise ValueError(f"ingest.actions.{name} has the edge {MEDIAN} and others, expected {MEDIAN} alone")
        return
    numbers = [float(edge) for edge in edges]
    if any(after <= before for before, after in pairwise(numbers)):
        raise ValueError(f"ingest.actions.{name} is {numbers}, expected edges that ascend, each once")
