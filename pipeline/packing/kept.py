"""What stays of histories when a strategy leaves out items or tokens, decided on the host.

Shape legend: N items of all histories, M interactions of the splits, S tokens of one item (its codes, then the
separator), L code levels.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.packing.shape import any_of


@dataclass(frozen=True)
class KeptItems:
    """What stays of histories, on the host: whole items or single tokens of them (the other is None), and something of
    each history.
    """

    stays_N: np.ndarray | None  # bool: items; the others are as if they had never been there
    tokens_NS: np.ndarray | None  # bool: tokens that enter the encoder

    @classmethod
    def of(cls, skip_NL: np.ndarray, offsets: np.ndarray, whole_items: bool, separators: bool) -> "KeptItems":
        """From the tokens that are skipped; history w owns the items from offsets[w] to offsets[w + 1], one at least.

        An item leaves when all its tokens are skipped, and its separator with it. A history that would lose everything
        keeps its last item.

        Args:
            whole_items: all tokens of an item stay while one of them does.
        """
        kept_NL = ~skip_NL
        stays_N = any_of(kept_NL)
        last_N = offsets[1:][~np.logical_or.reduceat(stays_N, offsets[:-1])] - 1  # of histories that would lose all
        kept_NL[last_N] = stays_N[last_N] = True
        if whole_items:
            return cls(stays_N, None)
        return cls(None, np.concatenate([kept_NL, stays_N[:, None]], 1) if separators else kept_NL)

    def items(
        self, items_N: np.ndarray, offsets: np.ndarray, times_N: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """The histories without the items that left."""
        if self.stays_N is None:
            return items_N, offsets, times_N
        return (
            items_N[self.stays_N],
            np.concatenate([[0], np.cumsum(self.stays_N)])[offsets],
            None if times_N is None else times_N[self.stays_N],
        )


@dataclass(frozen=True)
class EvalSkips:
    """Tokens that a trained model does not see in the histories that it is evaluated on."""

    skip_ML: np.ndarray  # bool, by flat position of the interaction in the splits
    whole_items: bool  # as in `KeptItems.of`
    separators: bool

    def kept(self, index_N: np.ndarray, offsets: np.ndarray) -> KeptItems:
        """What stays of histories whose items are the interactions at flat positions `index_N`."""
        return KeptItems.of(self.skip_ML[index_N], offsets, self.whole_items, self.separators)
