"""The catalogue as the model sees it: the Semantic ID of every item, and the tree of their prefixes.

Sorted lexicographically, the items below one prefix stand together. Level by level, the prefixes are numbered in that
order, so the children of a prefix are a contiguous range of the next level's numbers: decoding gathers just those, and
its cost does not depend on the number of items.

Shape legend: I items, L code levels, P prefixes of one length.
"""

import numpy as np
import torch
from torch import Tensor, nn


class Catalogue(nn.Module):
    """Codes and prefix table. A module, so that it moves with the model; nothing of it is saved with the weights.

    Prefixes of length l are the nodes of level l; the root is node 0 of level 0 and the nodes of level L are the items
    in lexicographic order of their Semantic IDs. Per level l < L: the children of node p are the nodes
    `first_child(l)[p] : first_child(l)[p + 1]` of level l + 1, in ascending order of their `code(l)`.

    Args:
        codes_IL: code of each item at each level; the row number is the item id.
        widths: how many values each level may take.

    Raises:
        ValueError: a code lies outside its level's width, or two items share a Semantic ID.
    """

    codes_IL: Tensor  # int64
    item_of_leaf_I: Tensor  # int64: item id of each node of level L

    def __init__(self, codes_IL: np.ndarray | Tensor, widths: tuple[int, ...]):
        super().__init__()
        codes = np.asarray(codes_IL, dtype=np.int64)
        _check_codes(codes, widths)
        self.widths = tuple(int(width) for width in widths)
        self.items, self.levels = codes.shape
        leaves = np.lexsort(codes.T[::-1])
        _check_distinct(codes, leaves)
        self._buffer("codes_IL", codes)
        self._buffer("item_of_leaf_I", leaves)
        self._build_tree(codes[leaves])

    def _build_tree(self, sorted_IL: np.ndarray) -> None:
        """One CSR table per level, from the rows where a prefix differs from the one above it."""
        node_of_row = np.zeros(self.items, dtype=np.int64)
        self.prefixes = [1]  # P of each level, 0 .. L
        self.fanout = []  # most children that a node of each level has
        # Items left of each node, per level [P + 1]; on the host, for those who walk the tree in pieces
        self.leaves_before: list[np.ndarray] = [np.array([0, self.items])]
        for level in range(self.levels):
            is_new = np.ones(self.items, dtype=bool)
            is_new[1:] = (np.diff(node_of_row) > 0) | (np.diff(sorted_IL[:, level]) != 0)
            rows = np.flatnonzero(is_new)  # first item below each node of the next level
            counts = np.bincount(node_of_row[rows], minlength=self.prefixes[-1])
            self._buffer(f"first_child_{level}", np.concatenate([[0], np.cumsum(counts)]))
            self._buffer(f"code_{level}", sorted_IL[rows, level])
            self._buffer(f"edge_{level}", node_of_row[rows] * self.widths[level] + sorted_IL[rows, level])
            self.fanout.append(int(counts.max()))
            self.prefixes.append(len(rows))
            self.leaves_before.append(np.append(rows, self.items))
            node_of_row = np.cumsum(is_new) - 1

    def _buffer(self, name: str, array: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)), persistent=False)

    def first_child(self, level: int) -> Tensor:
        """int64 [P + 1]: the first child of each node of `level`, as a node of `level + 1`."""
        return self.get_buffer(f"first_child_{level}")

    def code(self, level: int) -> Tensor:
        """int64 [P of level + 1]: the last code of each prefix of length `level + 1`."""
        return self.get_buffer(f"code_{level}")

    def child(self, level: int, node: Tensor, code: Tensor) -> Tensor:
        """The node of `level + 1` that `code` leads to from `node`, -1 where there is none (or `node` is -1)."""
        edges = self.get_buffer(f"edge_{level}")  # ascending, because nodes are numbered lexicographically
        wanted = node * self.widths[level] + code
        found = torch.searchsorted(edges, wanted).clamp_(max=len(edges) - 1)
        return torch.where(edges[found] == wanted, found, -1)  # from node -1 `wanted` is negative: never found


def _check_codes(codes: np.ndarray, widths: tuple[int, ...]) -> None:
    if codes.ndim != 2 or codes.shape[1] != len(widths) or len(codes) == 0:
        raise ValueError(f"codes of shape {codes.shape} are not [items, {len(widths)} levels]")
    outside = np.argwhere((codes < 0) | (codes >= np.asarray(widths)))
    if len(outside):
        item, level = outside[0]
        raise ValueError(f"item {item} has code {codes[item, level]} at level {level + 1}, "
                         f"which allows 0 to {widths[level] - 1}")


def _check_distinct(codes: np.ndarray, leaves: np.ndarray) -> None:
    same = np.flatnonzero((codes[leaves[1:]] == codes[leaves[:-1]]).all(axis=1))
    if len(same):
        first, second = leaves[same[0]], leaves[same[0] + 1]
        raise ValueError(f"items {first} and {second} share the Semantic ID {codes[first].tolist()} "
                         f"({len(same)} such pairs): every item needs its own, a deduplication digit gives it one")
