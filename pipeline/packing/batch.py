"""Hold a batch of windows, and what a strategy has decided to compute of the windows of a step.

Shape legend: W windows, N items of all histories, S tokens of one item (L codes, then the separator), L code levels;
local: A columns of actions, M draws from a large catalogue, R rows of some of the windows' targets.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipeline.packing.histories import DistinctItems, Histories


@dataclass(frozen=True, kw_only=True)
class Selected:
    """`Selected` says what is computed of windows, on the host, windows in the order given; None means all.

    Where every item is a target (`all_targets`), `slots_W` and `counted_WL` have a row per item: for the item that
    follows it.
    """

    slots_W: np.ndarray  # int64: the slot where the strategy stores what it learns of each window's target
    counted_WL: np.ndarray  # bool: the levels of each target that count in the loss
    decoded_W: np.ndarray | None = None  # int64: decoder positions, the first 1 .. L
    # At most one of the next two is given, and something of each history is kept.
    stays_N: np.ndarray | None = None  # bool: items that are not left out
    tokens_NS: np.ndarray | None = None  # bool: tokens that enter the encoder
    all_targets: bool = False

    @property
    def lost(self) -> int:
        """Return the number of items that are left out."""
        return 0 if self.stays_N is None else int((~self.stays_N).sum())

    def rows(self, rows_W: np.ndarray, index_N: np.ndarray) -> "Selected":
        """Return the same decisions for some of the windows; `index_N` are the items of these."""
        targets_R = index_N if self.all_targets else rows_W
        return Selected(
            slots_W=self.slots_W[targets_R],
            counted_WL=self.counted_WL[targets_R],
            decoded_W=_at(self.decoded_W, rows_W),
            stays_N=_at(self.stays_N, index_N),
            tokens_NS=_at(self.tokens_NS, index_N),
            all_targets=self.all_targets,
        )

    def filled(self, windows: int, items: int) -> "Selected":
        """Return the same decisions with windows appended that only fill a batch; of these the least is computed.

        A window that fills has one decoder position, and the first token of each of its items.

        Args:
            windows: how many windows are appended.
            items: how many items they have together.
        """
        targets = items if self.all_targets else windows
        tokens_NS = None
        if self.tokens_NS is not None:
            tokens_NS = _extended(self.tokens_NS, items, np.arange(self.tokens_NS.shape[1]) == 0)
        return Selected(
            slots_W=_extended(self.slots_W, targets, 0),
            counted_WL=_extended(self.counted_WL, targets, True),
            decoded_W=None if self.decoded_W is None else _extended(self.decoded_W, windows, 1),
            stays_N=None if self.stays_N is None else _extended(self.stays_N, items, True),
            tokens_NS=tokens_NS,
            all_targets=self.all_targets,
        )


def _extended(rows: np.ndarray, count: int, value: int | np.ndarray) -> np.ndarray:
    """Append `count` rows of `value`, in the type of `rows`."""
    more = np.broadcast_to(value, (count, *rows.shape[1:])).astype(rows.dtype)
    return np.concatenate([rows, more])


def _at(rows: np.ndarray | None, index: np.ndarray) -> np.ndarray | None:
    return None if rows is None else rows[index]


@dataclass(frozen=True)
class SampledItems:
    """`SampledItems` stand for a large catalogue in the softmax over items: each target, then the draws that all share.

    The logits of a target have 1 + M columns, and the column of the target is 0.
    """

    targets_R: Tensor  # int64: the item of each target
    items_M: Tensor  # int64: the draws; an item may come twice
    log_expected_M: Tensor  # float32: log of how often each drawn item is expected among the draws


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A `Batch` holds windows that go through the model together, all rows in the packed order of `histories`.

    Where the histories have `all_targets`, codes and weights have a row per item instead: for the item that follows it.
    """

    histories: Histories
    targets_W: Tensor  # int64: item id of each window's target
    # int64: the tokens of each target: its Semantic ID, or its actions where these alone are predicted; with `sampled`,
    # the column of its logit
    codes_WL: Tensor
    actions_WA: Tensor | None = None  # int64: the action of each target, for a network that predicts it
    weights_W: Tensor  # float32: factor of each window's loss; 0: the window only fills the batch
    distinct: DistinctItems | None = None  # in training, where the strategy asks for it
    sampled: SampledItems | None = None  # in training, for a network over many items
    # What `Sampler.select` said of each window; None where it said nothing
    slots_W: Tensor | None = None  # int64
    counted_WL: Tensor | None = None  # bool
