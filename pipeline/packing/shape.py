"""Round the sizes of batches to few values, so that what is made once per size is made rarely.

Kernels are compiled and CUDA graphs recorded once per size of their tensors. A `Shape` is a size that many batches are
filled up to, by windows that count for nothing.

Shape legend: W windows of a batch, N items of a batch's histories end to end, n flags of each item.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.ops.layout import uses_kernels


@dataclass(frozen=True)
class Shape:
    """A `Shape` says how many windows and items batches are filled up to, so that one recording serves (nearly) all.

    Where tokens or decoder positions are left out, it says too how many slots there are for the others.
    """

    windows: int
    items: int
    tokens: int = 0
    positions: int = 0

    @classmethod
    def of(cls, batches: Sequence[np.ndarray], longest: int, margin: float = 0.0) -> "Shape":
        """Return a shape that holds these batches, and batches with a share of `margin` more or fewer windows.

        batches [3, 2] and [1], longest 3 -> windows 3, items 6: one window of 1 item fills the first batch, two
        windows of 5 items together fill the second

        Args:
            batches: int64 [W] each, the items of each window.
            longest: bound of a window's items.
        """
        # Windows and items of each batch: 2, 1 and 5, 1
        counts = np.array([len(lengths_W) for lengths_W in batches])
        items = np.array([int(lengths_W.sum()) for lengths_W in batches])
        # One window more than the fullest batch has, so that each batch gets one that can take the missing items: 3
        windows = rounded_up(int(counts.max() * (1 + margin)) + 1)
        while True:
            # A window that fills has at least one item, so a batch of fewer windows needs more items: 5 + 1, 1 + 2
            spare = int(margin * windows) if longest > 1 else 0
            shape = cls(windows, rounded_up(int((items + windows - counts).max()) + spare))
            # The windows that fill (1, 2) must be able to hold the items that are missing (1, 5), `longest` (3) each;
            # if they cannot, try more windows.
            if (shape.items - items <= (windows - counts) * longest).all():
                return shape
            windows = rounded_up(windows + 1)

    def filling(self, lengths_W: np.ndarray, longest: int, lost: int = 0) -> np.ndarray:
        """Return the lengths of the windows that fill a batch up to this shape, or up to a larger one.

        A batch that is too big for this shape is filled up to the larger one.

        windows 4, items 12, lengths 3, 2 -> 4, 3: two windows are missing, and seven items

        Args:
            lengths_W: int64, the items of each window of the batch.
            longest: bound of a window's items.
            lost: how many of the batch's items are left out.

        Returns:
            int64 [windows that fill]; empty where these windows cannot hold the missing items: the batch then stays as
            it is.
        """
        windows = len(lengths_W)
        left = int(lengths_W.sum()) - lost
        # How many windows are missing: 4 - 2. A batch with as many windows as the shape, or more, gets a
        # few more, up to a larger size.
        count = (self.windows if windows < self.windows else rounded_up(int(windows * 1.03) + 1)) - windows
        # How many items are missing: 12 - 5
        items = self.items - left
        # If the missing windows cannot hold these items, add windows: 40 items, longest 7 -> at least 6 windows
        if items > count * longest:
            count = rounded_up(windows - (-items // longest)) - windows
        # If there is not one item for each of these windows, add items, up to a larger size.
        if items < count:
            items = rounded_up(left + count) - left
        if items > count * longest:
            return np.zeros(0, np.int64)
        # Divide the items evenly, the first windows get one more: 7 items over 2 windows -> 4, 3
        return np.full(count, items // count) + (np.arange(count) < items % count)


def any_of(flags_Nn: np.ndarray) -> np.ndarray:
    """Return for each row whether it has True, bool [N]: 10 00 01 -> 1 0 1.

    The transposed copy makes NumPy reduce column by column: along short rows it takes many times as long.
    """
    any_N: np.ndarray = np.logical_or.reduce(np.ascontiguousarray(flags_Nn.T))
    return any_N


def count_of(flags_Nn: np.ndarray) -> np.ndarray:
    """Count the True of each row, int64 [N], as fast as `any_of`: 10 00 11 -> 1 0 2."""
    count_N: np.ndarray = np.add.reduce(np.ascontiguousarray(flags_Nn.T), dtype=np.int64)
    return count_N


def rounded_up(count: int, bits: int = 4) -> int:
    """Round `count` up to one of few sizes, at most 6% larger (3% with 5 `bits`).

    The size has at most `bits` + 1 significant bits: 100 = 1100100 in binary -> 100, 101 -> 104 = 1101000.
    """
    step = max(1, 1 << max(0, count.bit_length() - bits - 1))
    return -(-count // step) * step


def capacity_on(device: torch.device, count: int, least: int = 0) -> int:
    """Return the capacity of a packed axis that holds `count` tokens.

    On a CPU it is `count`. Where kernels run, each size of a tensor would be a separate recording: there it is `least`,
    or one of few sizes where `least` does not suffice.
    """
    if not uses_kernels(device):
        return count
    return rounded_up(count) if count > least else least
