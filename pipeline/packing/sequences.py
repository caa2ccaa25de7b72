"""The packed axis of a causal backbone: each window one sequence, its history and what is fed of its target.

The tokens of an item in a history are its L codes and, where the config says so, a separator. After those of all
items stand the first L - 1 codes of the target. The last token of an item predicts level 1 of the item that follows,
the token of level l predicts its level l + 1, and no start token exists. A backbone that reads one vector per item
(`read`) has one token per item and nothing after them.

All sizes are known on the host and all places computed on the device, so that nothing waits for it. Items that belong
to no window may stand at the end of the packed axis; then their tokens belong to no sequence.

Shape legend: W windows, N items, T tokens of all sequences, S tokens of an item, E tokens of a target that are fed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.layout import Layout
from pipeline.ops.pointwise import Times
from pipeline.packing.histories import Histories


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Where each window's sequence lies on the packed axis."""

    bounds: Tensor  # int64 [W + 1]: the first token of each sequence, and behind the last one
    history_W: Tensor  # int64: its tokens that are history; `fed` more follow
    first_item_W: Tensor  # int64: its first item on the axis of items
    source_T: Tensor  # int64: which of the N * S history tokens, then W * E target tokens, stands here; padding: any
    per_item: int  # S
    fed: int  # E
    longest: int  # places of the longest sequence, or a bound of it
    capacity: int  # places of every sequence of a padded batch; 0: packed

    @property
    def starts_W(self) -> Tensor:
        return self.bounds[:-1]

    @property
    def lengths_W(self) -> Tensor:
        return self.history_W + self.fed

    def layout(self, times: Times | None = None) -> Layout:
        """How the axis falls into sequences, with the tokens' times where the backbone wants them."""
        if self.capacity:
            return Layout.padded(self.lengths_W, self.capacity).timed(times)
        return Layout.packed(self.lengths_W, self.longest, starts=self.bounds).timed(times)

    def last_rows_W(self) -> Tensor:
        """The place of each history's last token."""
        return self.starts_W + self.history_W - 1

    def item_rows_N(self, items: int) -> Tensor:
        """The place of each item's last token, of items of no window any place."""
        device = self.starts_W.device
        item_N = torch.arange(items, device=device)
        window_N = torch.searchsorted(self.first_item_W, item_N, right=True) - 1
        row_N = self.starts_W[window_N] + (item_N - self.first_item_W[window_N] + 1) * self.per_item - 1
        return row_N.clamp_(max=len(self.source_T) - 1)


def lay_out(histories: Histories, per_item: int, fed: int) -> Sequences:
    """Sequences of `per_item` tokens per item of history and `fed` of the target; a padded batch has `pad_to` places
    for the history.

    Raises:
        ValueError: a padded batch has a window longer than `pad_to`.
    """
    if histories.pad_to and histories.longest * per_item > histories.pad_to:
        raise ValueError(
            f"a window of {histories.longest * per_item} encoder positions does not fit train.pad_to "
            f"({histories.pad_to})"
        )
    windows, device = len(histories.lengths_W), histories.lengths_W.device
    history_W = histories.lengths_W * per_item
    first_item = F.pad(histories.lengths_W.cumsum(0), (1, 0))  # [W + 1], the end included
    order = torch.arange(windows + 1, device=device)
    capacity = histories.pad_to + fed if histories.pad_to else 0
    if capacity:
        bounds, size, longest = order * capacity, windows * capacity, capacity
    else:
        bounds, size = first_item * per_item + order * fed, len(histories.items_N) * per_item + windows * fed
        longest = histories.longest * per_item + fed
    starts_W, first_item_W = bounds[:-1], first_item[:-1]
    position_T = torch.arange(size, device=device)
    window_T = torch.searchsorted(starts_W, position_T, right=True) - 1
    within_T = position_T - starts_W[window_T]
    after_T = within_T - history_W[window_T]  # how far behind the history
    all_history = len(histories.items_N) * per_item
    source_T = torch.where(
        after_T < 0, first_item_W[window_T] * per_item + within_T, all_history + window_T * fed + after_T
    ).clamp_(max=all_history + windows * fed - 1)
    return Sequences(
        bounds=bounds,
        history_W=history_W,
        first_item_W=first_item_W,
        source_T=source_T,
        per_item=per_item,
        fed=fed,
        longest=longest,
        capacity=capacity,
    )


def times_of(times_N: Tensor, lengths_W: Tensor, sequences: Sequences, levels: int) -> Times:
    """Times of all tokens from those of the items. `levels`: codes of an item; 1 where items are vectors."""
    first_W = sequences.first_item_W
    before_N = torch.cat([times_N[:1], times_N[:-1]])
    before_N = before_N.index_copy(0, first_W, times_N[first_W])
    known_S = torch.arange(sequences.per_item, device=times_N.device) >= levels - 1
    asked_NS = torch.where(known_S, times_N[:, None], before_N[:, None])
    happened_NS = times_N[:, None].expand_as(asked_NS)
    last_WE = times_N[first_W + lengths_W - 1][:, None].expand(-1, sequences.fed)
    asked_T, happened_T = (
        torch.cat([x.flatten(), last_WE.flatten()])[sequences.source_T] for x in (asked_NS, happened_NS)
    )
    return Times(asked_T, happened_T)
