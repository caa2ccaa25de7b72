"""Say what users did with the items that they were shown: the columns of actions, and the values that they take.

`ingest.actions` names the columns and gives each its edges. The value of a number is how many edges it reaches: with
watch_seconds: [3, 10] the values 0, 1 and 2 are less than 3 seconds, 3 to 10, and 10 or more. A missing number has the
value 0, which means none.

The edge `median` divides at the item's median: 1 where the number is above the median of the item's exposures in the
training part.

The module loads without numpy, because `check` reads the edges before any other stage runs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

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


def label_keys(labels: Sequence[Label]) -> list[str]:
    """Return a name of each label for keys of metrics, of letters, digits, `_`, `.` and `-`, such as `click_1`.

    Names of labels that differ in other characters alone get a number, `a_b_1` and `a_b_1__2`.
    """
    keys: list[str] = []
    for label in labels:
        plain = re.sub(r"[^\w.-]+", "_", label.name.replace("e+", "e"), flags=re.ASCII)
        same = sum(key == plain or key.startswith(f"{plain}__") for key in keys)
        keys.append(f"{plain}__{same + 1}" if same else plain)
    return keys


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
