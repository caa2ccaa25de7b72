"""Lay out the packed axis of a causal backbone: each window is one sequence, its history and the codes that are fed.

The tokens of an item in a history are its L codes and, where the config says so, a separator. After the tokens of all
items come the first L - 1 codes of the target. The last token of an item predicts level 1 of the item that follows, the
token of level l predicts its level l + 1, and no start token exists. A backbone that reads one vector per item (`read`)
has one token per item and nothing after them.

All sizes are known on the host and all positions computed on the device, so that nothing waits for it. Items that
belong to no window may come at the end of the packed axis; then their tokens belong to no sequence.

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
    """`Sequences` says where each window's sequence lies on the packed axis."""

    bounds: Tensor  # int64 [W + 1]: the first token of each sequence, and the end of the last one
    history_W: Tensor  # int64: tokens of each sequence that are history; `fed` more follow
    first_item_W: Tensor  # int64: the first item of each window on the axis of items
    source_T: Tensor  # int64: which of the N * S history tokens, then W * E target tokens, each one is; padding: any
    per_item: int  # S
    fed: int  # E
    longest: int  # slots of the longest sequence, or a bound of them
    capacity: int  # slots of every sequence of a padded batch; 0: packed

    @property
    def starts_W(self) -> Tensor:
        """Return the index of each sequence's first token, int64."""
        return self.bounds[:-1]

    @property
    def are_items(self) -> bool:
        """Tell whether the axis is the axis of items: one token for each, nothing fed and no padding."""
        return self.per_item == 1 and self.fed == 0 and self.capacity == 0

    @property
    def lengths_W(self) -> Tensor:
        """Return the number of tokens of each sequence, int64."""
        return self.history_W + self.fed

    def layout(self, times: Times | None = None) -> Layout:
        """Return the layout of the axis, with the tokens' times where the backbone reads times."""
        if self.capacity:
            return Layout.padded(self.lengths_W, self.capacity).timed(times)
        return Layout.packed(self.lengths_W, self.longest, starts=self.bounds).timed(times)

    def last_rows_W(self) -> Tensor:
        """Return the row of each history's last token on the packed axis, int64."""
        return self.starts_W + self.history_W - 1

    def item_rows_N(self, items: int) -> Tensor:
        """Return the row of each item's last token on the packed axis, int64; an item of no window has any row.

        Two windows of 1 and 2 items, 2 tokens per item, 1 fed: the axis is h h t | h h h h t -> rows 1 | 4 6
        """
        device = self.starts_W.device
        item_N = torch.arange(items, device=device)
        window_N = torch.searchsorted(self.first_item_W, item_N, right=True) - 1  # 0 | 1 1
        rank_N = item_N - self.first_item_W[window_N]  # which item of its window, from 0: 0 | 0 1
        row_N = self.starts_W[window_N] + (rank_N + 1) * self.per_item - 1
        return row_N.clamp_(max=len(self.source_T) - 1)


def lay_out(histories: Histories, per_item: int, fed: int) -> Sequences:
    """Lay out sequences of `per_item` tokens per item of history and `fed` of the target, one sequence per window.

    A padded batch has `pad_to` slots for each history.

    Two windows of 1 and 2 items, 2 tokens per item, 1 fed -> bounds 0 3 8, history 2, 4, source 0 1 6 | 2 3 4 5 7

    Raises:
        ValueError: a padded batch has a window longer than `pad_to`.
    """
    if histories.pad_to and histories.longest * per_item > histories.pad_to:
        raise ValueError(
            f"a window of {histories.longest * per_item} encoder positions does not fit train.pad_to "
            f"({histories.pad_to})"
        )
    windows = len(histories.lengths_W)
    device = histories.lengths_W.device
    all_history = len(histories.items_N) * per_item  # tokens of all histories: 6
    history_W = histories.lengths_W * per_item
    # The first item of each window, and the end of the last one: 0 1 3
    first_item = F.pad(histories.lengths_W.cumsum(0), (1, 0))
    # Where sequences begin: all at multiples of one capacity, or each where the one before ends (0 3 8).
    number = torch.arange(windows + 1, device=device)
    if histories.pad_to:
        capacity = longest = histories.pad_to + fed
        bounds = number * capacity
        size = windows * capacity
    else:
        capacity = 0
        longest = histories.longest * per_item + fed
        bounds = first_item * per_item + number * fed
        size = all_history + windows * fed
    if fed or histories.pad_to:
        source_T = _sources(bounds[:-1], history_W, first_item[:-1], all_history, size, per_item, fed)
    else:  # every token is of a history
        source_T = torch.arange(size, device=device)
    return Sequences(
        bounds=bounds,
        history_W=history_W,
        first_item_W=first_item[:-1],
        source_T=source_T,
        per_item=per_item,
        fed=fed,
        longest=longest,
        capacity=capacity,
    )


def _sources(
    starts_W: Tensor, history_W: Tensor, first_item_W: Tensor, all_history: int, size: int, per_item: int, fed: int
) -> Tensor:
    """Return `Sequences.source_T`.

    Args:
        all_history: tokens of all histories.
        size: T.
    """
    # The window of each token and the token's position in it: 0 0 0 | 1 1 1 1 1 and 0 1 2 | 0 1 2 3 4
    number_T = torch.arange(size, device=starts_W.device)
    window_T = torch.searchsorted(starts_W, number_T, right=True) - 1
    position_T = number_T - starts_W[window_T]
    # How far behind its history each token is; below 0 it is in the history: -2 -1 0 | -4 -3 -2 -1 0
    after_T = position_T - history_W[window_T]
    # Tokens of histories come first among the sources (0 1 | 2 3 4 5), those of targets behind all of them (6 | 7).
    from_history_T = first_item_W[window_T] * per_item + position_T
    from_target_T = all_history + window_T * fed + after_T
    return torch.where(after_T < 0, from_history_T, from_target_T).clamp_(max=all_history + len(starts_W) * fed - 1)


def times_of(times_N: Tensor, lengths_W: Tensor, sequences: Sequences, levels: int) -> Times:
    """Return the times of all tokens from those of the items.

    Two windows with items at 10 | 20 30, 2 levels, 1 code fed ->
    asked 10 10 10 | 20 20 20 30 30, happened 10 10 10 | 20 20 30 30 30

    Args:
        times_N: int64, when each item came, in seconds.
        lengths_W: int64, items of each window.
        levels: codes of an item; 1 where items are vectors.
    """
    if sequences.are_items and levels == 1:
        return Times(times_N, times_N)
    first_W = sequences.first_item_W
    # The time of the item before each one; the first item of a window has none before and takes its own: 10 | 20 20
    before_N = torch.cat([times_N[:1], times_N[:-1]])
    before_N = before_N.index_copy(0, first_W, times_N[first_W])
    # From its last code on an item is known whole, and asks from its time; an earlier code asks from the item before.
    known_S = torch.arange(sequences.per_item, device=times_N.device) >= levels - 1
    asked_NS = torch.where(known_S, times_N[:, None], before_N[:, None])  # 10 10 | 20 20, 20 30
    happened_NS = times_N[:, None].expand_as(asked_NS)  # 10 10 | 20 20, 30 30
    # The codes of the target have the time of the history's last item: 10 | 30
    last_WE = times_N[first_W + lengths_W - 1][:, None].expand(-1, sequences.fed)
    asked_T, happened_T = (
        torch.cat([x.flatten(), last_WE.flatten()])[sequences.source_T] for x in (asked_NS, happened_NS)
    )
    return Times(asked_T, happened_T)
