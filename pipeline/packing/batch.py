"""A batch of windows, and what a strategy computes of the windows of a step.

Shape legend: W windows, N items of all histories, S tokens of one item (L codes, then the separator), L code levels.
"""

from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from torch import Tensor

from pipeline.packing.histories import DistinctItems, Histories


@dataclass(frozen=True)
class Selected:
    """What is computed of windows, on the host; windows in the order given. None: all.

    Where every item is a target, slots and counted have a row per item: of the one that follows it.
    """

    slots_W: np.ndarray  # int64: where the strategy keeps what it learns of each window's target
    counted_WL: np.ndarray  # bool: the levels of each target that count in the loss
    decoded_W: np.ndarray | None = None  # int64: decoder positions, the first 1 .. L
    # Of the histories at most one of these; something stays of each
    stays_N: np.ndarray | None = None  # bool: items that are not left out
    tokens_NS: np.ndarray | None = None  # bool: tokens that enter the encoder
    all_targets: bool = False

    @property
    def lost(self) -> int:
        """Items that are left out."""
        return 0 if self.stays_N is None else int((~self.stays_N).sum())

    def rows(self, rows_W: np.ndarray, index_N: np.ndarray) -> "Selected":
        """The same decisions for some of the windows; `index_N` are their items."""
        targets_R = index_N if self.all_targets else rows_W
        return Selected(
            self.slots_W[targets_R],
            self.counted_WL[targets_R],
            _at(self.decoded_W, rows_W),
            _at(self.stays_N, index_N),
            _at(self.tokens_NS, index_N),
            self.all_targets,
        )

    def filled(self, windows: int, items: int) -> "Selected":
        """The same decisions, with windows behind that only fill a batch; of those as little is computed as can be."""
        targets = items if self.all_targets else windows
        return Selected(
            _more(self.slots_W, targets, 0),
            _more(self.counted_WL, targets, True),
            _more(self.decoded_W, windows, 1),
            _more(self.stays_N, items, True),
            _more(
                self.tokens_NS, items, np.arange(self.tokens_NS.shape[1]) == 0 if self.tokens_NS is not None else True
            ),
            self.all_targets,
        )


@overload
def _more(array: np.ndarray, count: int, value: Any) -> np.ndarray: ...


@overload
def _more(array: None, count: int, value: Any) -> None: ...


def _more(array: np.ndarray | None, count: int, value: Any) -> np.ndarray | None:
    """`count` rows of `value` behind."""
    if array is None:
        return None
    return np.concatenate([array, np.broadcast_to(value, (count, *array.shape[1:])).astype(array.dtype)])


def _at(array: np.ndarray | None, index: np.ndarray) -> np.ndarray | None:
    return None if array is None else array[index]


@dataclass(frozen=True)
class Batch:
    """Windows that go through the model together; all rows in the packed order of `histories`.

    Where the histories have `all_targets`, codes and weights have a row per item instead: of the item that follows it.
    """

    histories: Histories
    targets_W: Tensor  # int64: item id of each window's target
    codes_WL: Tensor  # int64: its Semantic ID
    weights_W: Tensor  # float32: factor of each window's loss; 0: it only fills the batch
    distinct: DistinctItems | None = None  # in training, where the strategy asks for it
    # What `Sampler.select` said of each window, where it said something
    slots_W: Tensor | None = None  # int64
    counted_WL: Tensor | None = None  # bool
