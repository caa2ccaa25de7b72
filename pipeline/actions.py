"""`Actions` says what the numbers of an action mean: the columns of the log that they come from, and their edges.

The value of a column is the number of its edges that are at or below the log's number, and 0 where the log has none:
edges 1 3 10 -> 0.5 is 0, 1 and 2.9 are 1, 12 is 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Actions:
    """The columns of an action in their order, with the ascending edges of each.

    An edge is a number, or a word such as `median` for one that depends on the item.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[float | str, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return how many values each column may take: 0 to size - 1."""
        return tuple(len(edges) + 1 for edges in self.edges)

    def as_json(self) -> dict[str, Any]:
        """Return what splits.json holds under `actions`."""
        return {"names": list(self.names), "edges": [list(edges) for edges in self.edges]}

    @classmethod
    def of(cls, json: Mapping[str, Any]) -> "Actions":
        """Return what `as_json` wrote."""
        return cls(tuple(json["names"]), tuple(tuple(edges) for edges in json["edges"]))
