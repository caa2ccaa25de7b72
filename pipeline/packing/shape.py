"""Few sizes for many batches, so that what depends on a size meets few of them.

Shape legend: N rows, n flags of each; W windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.ops.layout import uses_kernels


@dataclass(frozen=True)
class Shape:
    """Windows and items that batches are filled up to, so that one recording of a CUDA graph serves (nearly) all; and
    where tokens or decoder positions are left out, places for those that are not.
    """

    windows: int
    items: int
    tokens: int = 0
    positions: int = 0

    @classmethod
    def of(cls, batches: Sequence[np.ndarray], longest: int, margin: float = 0.0) -> "Shape":
        """Room for batches of windows of these lengths, and for a share of `margin` more windows or fewer.

        batches [3, 2] and [1], longest 3 -> windows 3, items 6: one window of 1 item fills the first, two windows of 5
        items together fill the second
        """
        counts, items = (np.array(sizes) for sizes in ([len(x) for x in batches], [int(x.sum()) for x in batches]))
        # One window more than the fullest batch has, so that each has one that can take what items are missing.
        windows = rounded_up(int(counts.max() * (1 + margin)) + 1)
        while True:
            # Each window that fills has an item at least, so a batch of fewer windows needs more items.
            spare = int(margin * windows) if longest > 1 else 0
            shape = cls(windows, rounded_up(int((items + windows - counts).max()) + spare))
            # The windows that fill must be able to hold the items that are missing; more of them can.
            if (shape.items - items <= (windows - counts) * longest).all():
                return shape
            windows = rounded_up(windows + 1)

    def filling(self, lengths_W: np.ndarray, longest: int, lost: int = 0) -> np.ndarray:
        """Lengths of the windows that fill up a batch of these; of one that this shape cannot hold, up to a larger one.
        Empty where more items are missing than the windows to fill can hold: the batch then stays as it is.

        windows 4, items 12, lengths 3, 2 -> 4, 3: two windows are missing, and seven items

        Args:
            lost: items of these that are left out.
        """
        windows, left = len(lengths_W), int(lengths_W.sum()) - lost
        # How many windows are missing; a batch with as many or more gets a few, up to a larger size.
        count = (self.windows if windows < self.windows else rounded_up(int(windows * 1.03) + 1)) - windows
        # How many items. Where the windows cannot hold them, more windows; where there is not one for each, more items.
        items = self.items - left
        if items > count * longest:
            count = rounded_up(windows - (-items // longest)) - windows
        if items < count:
            items = rounded_up(left + count) - left
        if items > count * longest:
            return np.zeros(0, np.int64)
        # Shared out evenly, the first windows one more: 7 items over 2 windows -> 4, 3
        return np.full(count, items // count) + (np.arange(count) < items % count)


def any_of(flags_Nn: np.ndarray) -> np.ndarray:
    """Whether a row has True, bool [N]. Column by column: along short rows NumPy takes many times as long."""
    return np.logical_or.reduce(np.ascontiguousarray(flags_Nn.T))


def count_of(flags_Nn: np.ndarray) -> np.ndarray:
    """How many each row has, int64 [N]."""
    return np.add.reduce(np.ascontiguousarray(flags_Nn.T), dtype=np.int64)


def rounded_up(count: int, bits: int = 4) -> int:
    """`count` rounded up to one of few sizes, at most 6% larger (3% with 5 `bits`): what depends on a size then meets
    few of them.
    """
    step = max(1, 1 << max(0, count.bit_length() - bits - 1))
    return -(-count // step) * step


def capacity_on(device: torch.device, count: int, least: int = 0) -> int:
    """Places of a packed axis for `count` tokens: on a CPU as many. Where kernels run `least`, or where that does not
    suffice one of few sizes: each size of a tensor would be a recording of its own there.
    """
    if not uses_kernels(device):
        return count
    return rounded_up(count) if count > least else least
