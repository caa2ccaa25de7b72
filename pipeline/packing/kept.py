"""Decide on the host which items and tokens of histories are kept when a strategy skips some.

Shape legend: N items of all histories, M interactions of the splits, S tokens of one item (its codes, then the
separator), L code levels.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.packing.shape import any_of


@dataclass(frozen=True)
class KeptItems:
    """`KeptItems` says what is kept of histories: either whole items or single tokens, something of each history.

    The field that does not apply is None. All arrays are on the host.
    """

    stays_N: np.ndarray | None  # bool: the items that are kept; the others are as if they had never been there
    tokens_NS: np.ndarray | None  # bool: the tokens that enter the encoder

    @classmethod
    def of(cls, skip_NL: np.ndarray, offsets: np.ndarray, whole_items: bool, separators: bool) -> "KeptItems":
        """Find what is kept where the tokens `skip_NL` are skipped.

        An item leaves, with its separator, when all its tokens are skipped. A history that would lose everything keeps
        its last item.

        skip 01 11 | 11 11, offsets 0 2 4 -> stays 1 0 | 0 1; tokens 10 00 | 00 11

        Args:
            skip_NL: bool, the tokens that are skipped.
            offsets: int64 [histories + 1]; history w has the items offsets[w] to offsets[w + 1], at least one.
            whole_items: all tokens of an item are kept if one is.
            separators: whether a separator follows the codes of an item.
        """
        kept_NL = ~skip_NL  # 10 00 | 00 00
        stays_N = any_of(kept_NL)  # 1 0 | 0 0
        # The last item of each history that would lose everything, here item 3: it stays, with all its tokens.
        last_N = offsets[1:][~np.logical_or.reduceat(stays_N, offsets[:-1])] - 1
        kept_NL[last_N] = stays_N[last_N] = True
        if whole_items:
            return cls(stays_N, None)
        return cls(None, np.concatenate([kept_NL, stays_N[:, None]], 1) if separators else kept_NL)

    def items(
        self, items_N: np.ndarray, offsets: np.ndarray, times_N: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return items, offsets and times of the histories without the items that left.

        items 5 6 7, offsets 0 2 3, stays 0 1 1 -> items 6 7, offsets 0 1 2
        """
        if self.stays_N is None:
            return items_N, offsets, times_N
        return (
            items_N[self.stays_N],
            np.concatenate([[0], np.cumsum(self.stays_N)])[offsets],
            None if times_N is None else times_N[self.stays_N],
        )

    def rows(self, rows_N: np.ndarray | None) -> np.ndarray | None:
        """Return those of the items' rows whose items have not left."""
        return rows_N if rows_N is None or self.stays_N is None else rows_N[self.stays_N]


@dataclass(frozen=True)
class EvalSkips:
    """`EvalSkips` says which tokens a trained model does not see in the histories that it is evaluated on."""

    skip_ML: np.ndarray  # bool, by flat position of the interaction in the splits
    whole_items: bool  # as in `KeptItems.of`
    separators: bool

    def kept(self, index_N: np.ndarray, offsets: np.ndarray) -> KeptItems:
        """Find what is kept of histories whose items are the interactions at flat positions `index_N`."""
        return KeptItems.of(self.skip_ML[index_N], offsets, self.whole_items, self.separators)
