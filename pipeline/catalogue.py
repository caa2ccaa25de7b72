"""The catalogue as the model sees it: the Semantic ID of every item, and the tree of their prefixes.

Sorted lexicographically, the items below one prefix stand together. Level by level, the prefixes are numbered in that
order, so the children of a prefix are a contiguous range of the next level's numbers: decoding gathers just those, and
its cost does not depend on the number of items.

Where no deduplication digit tells them apart, items may share a Semantic ID. They are ranked one after another, by item
id: a model has no opinion on their order, and this one knows neither popularity nor the test set.

Shape legend: I items, L code levels, P prefixes of one length.
"""

import numpy as np
import torch
from torch import Tensor, nn


class Catalogue(nn.Module):
    """Codes and prefix table. A module, so that it moves with the model; nothing of it is saved with the weights.

    Prefixes of length l are the nodes of level l; the root is node 0 of level 0 and the nodes of level L, the leaves,
    are the Semantic IDs in lexicographic order. Per level l < L: the children of node p are the nodes
    `first_child(l)[p] : first_child(l)[p + 1]` of level l + 1, in ascending order of their `code(l)`. The items of leaf
    p are `item_of_leaf_I[first_item_P[p] : first_item_P[p + 1]]`; unless `shares`, leaf p is the item at place p.

    Args:
        codes_IL: code of each item at each level; the row number is the item id.
        widths: how many values each level may take.
        digit: the last level is a deduplication digit, so every item has a Semantic ID of its own.

    Raises:
        ValueError: a code lies outside its level's width, or two items share a Semantic ID in spite of a digit.
    """

    codes_IL: Tensor  # int64
    item_of_leaf_I: Tensor  # int64: item ids in the order of their leaves, those of one leaf ascending
    first_item_P: Tensor  # int64 [P + 1], P of level L
    leaf_of_item_I: Tensor  # int64: the leaf of each item

    def __init__(self, codes_IL: np.ndarray | Tensor, widths: tuple[int, ...], digit: bool = True):
        super().__init__()
        codes = np.asarray(codes_IL, dtype=np.int64)
        _check_codes(codes, widths)
        self.widths = tuple(int(width) for width in widths)
        self.items, self.levels = codes.shape
        self.digit = digit
        self.bucket_levels = self.levels - digit  # codes that come from the item's content
        leaves = np.lexsort(codes.T[::-1])
        if digit:
            _check_distinct(codes, leaves)
        self._buffer("codes_IL", codes)
        self._buffer("item_of_leaf_I", leaves)
        self._build_tree(codes[leaves])
        self.shares = self.prefixes[-1] < self.items  # some items have a Semantic ID in common
        self._buffer("first_item_P", self.leaves_before[-1])
        leaf_of_item_I = np.empty(self.items, dtype=np.int64)
        leaf_of_item_I[leaves] = np.repeat(np.arange(self.prefixes[-1]), np.diff(self.leaves_before[-1]))
        self._buffer("leaf_of_item_I", leaf_of_item_I)

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

    def items_of(self, leaves_WK: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """The items of each row's leaves, one leaf after another, cut to the first `slots`.

        Args:
            leaves_WK: -1 where a beam names nothing; it keeps one place.

        Returns:
            (item ids [W, places], -1 for none; the beam [W, places] that each comes from, K behind the last one).
        """
        first_WK = torch.where(leaves_WK < 0, 0, self.first_item_P[leaves_WK])
        counts_WK = torch.where(leaves_WK < 0, 1, self.first_item_P[leaves_WK + 1] - first_WK)
        ends_WK = counts_WK.cumsum(1)
        slot_WN = torch.arange(slots, device=leaves_WK.device).repeat(len(leaves_WK), 1)
        beam_WN = torch.searchsorted(ends_WK, slot_WN, right=True)
        known_WN = beam_WN.clamp(max=leaves_WK.shape[1] - 1)
        within_WN = slot_WN - (ends_WK - counts_WK).gather(1, known_WN)
        item_WN = self.item_of_leaf_I[(first_WK.gather(1, known_WN) + within_WN).clamp(max=self.items - 1)]
        named_WN = (beam_WN < leaves_WK.shape[1]) & (leaves_WK.gather(1, known_WN) >= 0)
        return torch.where(named_WN, item_WN, -1), beam_WN

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
        raise ValueError(
            f"item {item} has code {codes[item, level]} at level {level + 1}, which allows 0 to {widths[level] - 1}"
        )


def _check_distinct(codes: np.ndarray, leaves: np.ndarray) -> None:
    same = np.flatnonzero((codes[leaves[1:]] == codes[leaves[:-1]]).all(axis=1))
    if len(same):
        first, second = leaves[same[0]], leaves[same[0] + 1]
        raise ValueError(
            f"items {first} and {second} share the Semantic ID {codes[first].tolist()} "
            f"({len(same)} such pairs): every item needs its own, a deduplication digit gives it one"
        )
