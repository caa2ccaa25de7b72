"""The catalogue holds the Semantic ID of every item, and the prefix trie of these Semantic IDs.

When Semantic IDs are sorted lexicographically, the items below one prefix are neighbours. Level by level, the prefixes
are numbered in that order, so that the children of a prefix are a contiguous range of the next level's numbers:
decoding gathers these children only, and its cost does not depend on the number of items.

    Semantic IDs  (0, 4) (0, 7) (2, 5)
    level 0       node 0 (the root), its children are the nodes 0 .. 1 of level 1
    level 1       nodes 0 (0) and 1 (2); children of node 0: nodes 0 .. 1 of level 2, of node 1: node 2
    level 2       leaves 0 (0, 4), 1 (0, 7), 2 (2, 5)

Without a deduplication digit, several items may share a Semantic ID. They are ranked one after another, by item id: a
model scores them equally, and the order by item id uses neither popularity nor the test set.

Shape legend: I items of the catalogue, L levels, W windows, K beams; local: P prefixes of one length, O slots of a
ranking.
"""

import numpy as np
import torch
from torch import Tensor, nn


class Catalogue(nn.Module):
    """A `Catalogue` holds the codes of all items and the prefix trie.

    It is a module, so that it moves with the model; the buffers of the trie are not saved with weights.

    Prefixes of length l are the nodes of level l; the root is node 0 of level 0 and the nodes of level L, the leaves,
    are the Semantic IDs in lexicographic order. Per level l < L: the children of node p are the nodes
    `first_child(l)[p] : first_child(l)[p + 1]` of level l + 1, in ascending order of their `code(l)`. The items of leaf
    p are `item_of_leaf_I[first_item_P[p] : first_item_P[p + 1]]`; unless `shares`, that is the one item
    `item_of_leaf_I[p]`.

    Args:
        codes_IL: code of each item at each level; the row number is the item id.
        widths: how many values each level may take.
        digit: the last level is a deduplication digit, so that no two items share a Semantic ID.
        content_IC: float32, a content vector of each item, for a network that reads them. It is saved with the weights.
        trained_I: bool, the items that training sees, for a network with a learned row of each; likewise.
        action_sizes: how many values each column of the interactions' actions may take; empty: the network reads none.

    Raises:
        ValueError: a code lies outside its level's width, or two items share a Semantic ID in spite of a digit; there
            is not one content vector, or not one word on training, for each item.
    """

    codes_IL: Tensor  # int64
    item_of_leaf_I: Tensor  # int64: item ids in the order of their leaves, ascending within a leaf
    first_item_P: Tensor  # int64 [P + 1], P of level L
    leaf_of_item_I: Tensor  # int64: the leaf of each item
    content_IC: Tensor | None
    trained_I: Tensor | None

    def __init__(
        self,
        codes_IL: np.ndarray | Tensor,
        widths: tuple[int, ...],
        digit: bool = True,
        *,
        content_IC: np.ndarray | None = None,
        trained_I: np.ndarray | None = None,
        action_sizes: tuple[int, ...] = (),
    ):
        super().__init__()
        self.action_sizes = action_sizes
        codes = np.asarray(codes_IL)
        if codes.dtype != np.int32:  # int32 is all that a code needs, and half the memory while the trie is built
            codes = np.asarray(codes, dtype=np.int64)
        _check_codes(codes, widths)
        self.widths = tuple(int(width) for width in widths)
        self.items, self.levels = codes.shape
        self.digit = digit
        self.bucket_levels = self.levels - digit  # codes that come from the item's content
        # Item ids in lexicographic order of their codes; lexsort's last key is its first criterion, hence the reversal.
        order_I = np.lexsort(codes.T[::-1])
        if digit:
            _check_distinct(codes, order_I)
        self._buffer("codes_IL", codes)
        self._buffer("item_of_leaf_I", order_I)
        self._build_trie(codes[order_I])
        self.shares = self.prefixes[-1] < self.items  # True: some items have a Semantic ID in common
        self._buffer("first_item_P", self.leaves_before[-1])
        # The leaf of each item. order 2 0 1, first item of each leaf 0 2 3 -> leaves of items 0, 1, 2: 0 1 0
        leaf_of_item_I = np.empty(self.items, dtype=np.int64)
        leaf_of_item_I[order_I] = np.repeat(np.arange(self.prefixes[-1]), np.diff(self.leaves_before[-1]))
        self._buffer("leaf_of_item_I", leaf_of_item_I)
        _check_content(content_IC, trained_I, self.items)
        self.register_buffer("content_IC", None if content_IC is None else torch.from_numpy(np.array(content_IC)))
        self.register_buffer("trained_I", None if trained_I is None else torch.from_numpy(np.array(trained_I)))

    def _build_trie(self, sorted_IL: np.ndarray) -> None:
        """Build one table of children per level, from the rows where a prefix differs from the prefix of the row above.

        The comments follow the Semantic IDs (0, 4), (0, 7), (2, 5), sorted, with widths 3 and 8.
        """
        node_I = np.zeros(self.items, dtype=np.int32)  # the node of `level` above each row: at the root all 0
        self.prefixes = [1]  # P of each level, 0 .. L
        self.fanout = []  # most children that a node of each level has
        # Per level [P + 1]: the items before each node, in sorted order, and all items; on the host, for
        # `decoding/exhaustive.py`, which walks the trie in runs
        self.leaves_before: list[np.ndarray] = [np.array([0, self.items])]
        for level in range(self.levels):
            # A row begins a node of the next level where its node or its code is new: level 0: 1 0 1, level 1: 1 1 1
            is_new_I = np.ones(self.items, dtype=bool)
            codes_I = sorted_IL[:, level]
            is_new_I[1:] = (node_I[1:] != node_I[:-1]) | (codes_I[1:] != codes_I[:-1])
            rows = np.flatnonzero(is_new_I)
            # Children of each node: level 0: 2, hence first_child 0 2; level 1: 2 1, hence first_child 0 2 3
            counts = np.bincount(node_I[rows], minlength=self.prefixes[-1])
            self._buffer(f"first_child_{level}", np.concatenate([[0], np.cumsum(counts)]))
            # The code that leads to each node of the next level: level 1: 4 7 5
            self._buffer(f"code_{level}", sorted_IL[rows, level])
            # Node and code as one ascending number, for `child`: level 1: 0 * 8 + 4, 0 * 8 + 7, 1 * 8 + 5 = 4 7 13
            self._buffer(f"edge_{level}", node_I[rows].astype(np.int64) * self.widths[level] + sorted_IL[rows, level])
            self.fanout.append(int(counts.max()))
            self.prefixes.append(len(rows))
            self.leaves_before.append(np.append(rows, self.items))
            # Nodes of the next level are numbered in the order of the rows: level 0 gives the rows the nodes 0 0 1
            np.cumsum(is_new_I, out=node_I)
            node_I -= 1

    def _buffer(self, name: str, array: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)), persistent=False)

    def first_child(self, level: int) -> Tensor:
        """Return int64 [P + 1]: the first child of each node of `level`, as a node of `level + 1`."""
        return self.get_buffer(f"first_child_{level}")

    def code(self, level: int) -> Tensor:
        """Return int64 [P of level + 1]: the last code of each prefix of length `level + 1`."""
        return self.get_buffer(f"code_{level}")

    def items_of(self, leaves_WK: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """Return the items of each row's leaves, one leaf after another, cut to the first `slots`.

        Args:
            leaves_WK: -1 where a beam names nothing; such a beam takes one slot.

        Returns:
            (item ids [W, O], -1 for none; the beam [W, O] that each comes from, K after the last item).
        """
        # Leaf 5 has two items, leaf 7 one: leaves 5, -1, 7 -> counts 2 1 1, ends 2 3 4
        first_WK = torch.where(leaves_WK < 0, 0, self.first_item_P[leaves_WK])
        counts_WK = torch.where(leaves_WK < 0, 1, self.first_item_P[leaves_WK + 1] - first_WK)
        ends_WK = counts_WK.cumsum(1)
        # Which beam fills each slot: slots 0 .. 4 -> beams 0 0 1 2 3, and 3 is K: nothing fills slot 4
        slot_WO = torch.arange(slots, device=leaves_WK.device).repeat(len(leaves_WK), 1)
        beam_WO = torch.searchsorted(ends_WK, slot_WO, right=True)
        # Which item of its leaf that is: 0 1 . 0 .; slots without an item compute any number within bounds.
        known_WO = beam_WO.clamp(max=leaves_WK.shape[1] - 1)
        within_WO = slot_WO - (ends_WK - counts_WK).gather(1, known_WO)
        item_WO = self.item_of_leaf_I[(first_WK.gather(1, known_WO) + within_WO).clamp(max=self.items - 1)]
        named_WO = (beam_WO < leaves_WK.shape[1]) & (leaves_WK.gather(1, known_WO) >= 0)
        return torch.where(named_WO, item_WO, -1), beam_WO

    def child(self, level: int, node: Tensor, code: Tensor) -> Tensor:
        """Return the node of `level + 1` that `code` leads to from `node`; -1 if there is none, or if `node` is -1."""
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


def _check_content(content_IC: np.ndarray | None, trained_I: np.ndarray | None, items: int) -> None:
    if content_IC is not None and (
        content_IC.ndim != 2 or len(content_IC) != items or 0 in content_IC.shape or content_IC.dtype != np.float32
    ):
        raise ValueError(
            f"content vectors of {content_IC.dtype} {content_IC.shape} are not float32 [{items} items, width]"
        )
    if trained_I is not None and (trained_I.shape != (items,) or trained_I.dtype != np.bool_):
        raise ValueError(f"trained items of {trained_I.dtype} {trained_I.shape} are not bool [{items} items]")


def _check_distinct(codes: np.ndarray, order_I: np.ndarray) -> None:
    same = np.flatnonzero((codes[order_I[1:]] == codes[order_I[:-1]]).all(axis=1))
    if len(same):
        first, second = order_I[same[0]], order_I[same[0] + 1]
        raise ValueError(
            f"items {first} and {second} share the Semantic ID {codes[first].tolist()} "
            f"({len(same)} such pairs): with a deduplication digit no two items may share one"
        )
