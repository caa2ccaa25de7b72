"""Lay a batch of histories end to end, with no padding between them.

Windows are sorted by length, so that equal lengths are neighbours: a run of equal lengths is a dense block of the
packed axis that attention can view, not copy. Padded batches exist to check the papers' tables: they have the same
windows in the same order, the same kernels, and `pad_to` positions per window.

Shape legend: W windows, N items of all windows, U distinct ones among them, S tokens of one item; local: A
columns of actions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.packing.shape import count_of
from pipeline.packing.tokens import DecoderPositions, EncoderTokens, to_device


@dataclass(frozen=True)
class DistinctItems:
    """`DistinctItems` lists the items of a batch's histories, each once, in ascending order.

    The last item is repeated with weight 0 up to one of few numbers of rows.
    """

    items_U: Tensor  # int64, on the device
    weights_U: Tensor  # float32: factor of each item in sums over items, see `Network.items`


@dataclass(frozen=True, kw_only=True)
class Histories:
    """`Histories` are the input of a model: its windows sorted by length; `order` says where each came from."""

    items_N: Tensor  # int64, on the device: item ids, one window after another, oldest item first
    lengths_W: Tensor  # int64, on the device: items of each window; ascending unless `tokens` are
    row_of_W: Tensor  # int64, on the device: packed row of each input window (the inverse of `order`)
    lengths: np.ndarray  # the same as lengths_W, on the host
    order: np.ndarray  # int64 [W]: packed row i is input window order[i]
    longest: int  # items of the longest window, or a bound of them
    pad_to: int  # encoder positions of every window; 0: packed
    times_N: Tensor | None = None  # int64: when each item came, in seconds; only for a backbone that reads it
    actions_NA: Tensor | None = None  # int64: A columns of what the user did with each item; None: all are 0
    all_targets: bool = False  # a causal backbone predicts what follows every item, not only the last of each window
    tokens: EncoderTokens | None = None  # the tokens that enter the encoder; None: all
    decoder_positions: DecoderPositions | None = None  # those that are computed; None: all

    @classmethod
    def pack(  # noqa: PLR0913 - facts of a batch that are independent of each other, all but three by keyword
        cls,
        items_N: np.ndarray,
        offsets: np.ndarray,
        device: torch.device | str = "cpu",
        *,
        pad_to: int = 0,
        longest: int = 0,
        times_N: np.ndarray | None = None,
        actions_NA: np.ndarray | None = None,
        all_targets: bool = False,
        kept_NS: np.ndarray | None = None,
        decoded_W: np.ndarray | None = None,
        levels: int = 0,
        least: tuple[int, int] = (0, 0),
    ) -> "Histories":
        """Sort W windows by length (equal lengths stay in their order) and move them to the device.

        items 7 8 | 9, offsets 0 2 3 -> order 1, 0; items_N 9 | 7 8; lengths 1, 2; row_of_W 1, 0

        Args:
            items_N: item ids of all windows, one window after another.
            offsets: int64 [W + 1]; window w has items_N[offsets[w]:offsets[w + 1]].
            pad_to: encoder positions (codes and separators) of every window of a padded batch; 0 packs.
            longest: bound of a window's items. A compiled model depends on it, so that batches should share one; 0:
                the length of the longest of these windows.
            times_N: int64, when each item came, in seconds, for a backbone that reads times.
            actions_NA: the actions of the items, for a backbone that reads actions.
            all_targets: see the field.
            kept_NS: bool, the tokens of each item that enter the encoder, some of each window; an item without any is
                as if it had never been there. None: all. Not for padded batches.
            decoded_W: decoder positions of each window, 1 .. `levels`; None: all have `levels`.
            least: where kernels run, the slots for these tokens and for these positions; more, in few sizes, where
                they do not suffice.

        Raises:
            ValueError: there is no window, or one without an item or token: nothing could be predicted from it.
        """
        lengths_W = np.diff(offsets)
        if len(lengths_W) == 0 or lengths_W.min() < 1:
            raise ValueError("every batch needs a window, and every window at least one item of history")
        # Sort by what the encoder reads of each window, its items or its kept tokens; then by its decoder positions.
        sizes_W = lengths_W if kept_NS is None else np.add.reduceat(count_of(kept_NS), offsets[:-1])
        if sizes_W.min() < 1:
            raise ValueError("every window needs at least one token of history")
        order = np.lexsort((sizes_W,) if decoded_W is None else (decoded_W, sizes_W))
        # Gather the windows' items in this order: offsets 0 2 3, order 1, 0 -> slices [2, 3) and [0, 2) -> items 2 0 1
        lengths_W = lengths_W[order]
        source_N, _ = slices(np.asarray(offsets)[order], lengths_W)
        # The inverse of the order: window order[i] is in row i.
        row_of_W = np.empty_like(order)
        row_of_W[order] = np.arange(len(order))
        device = torch.device(device)
        decoder_positions = None
        if decoded_W is not None:
            decoder_positions = DecoderPositions.of(decoded_W[order], levels, device, least[1])
        return cls(
            items_N=to_device(np.asarray(items_N)[source_N], device),
            lengths_W=to_device(lengths_W, device),
            row_of_W=to_device(row_of_W, device),
            lengths=lengths_W,
            order=order,
            longest=longest or int(lengths_W.max()),
            pad_to=pad_to,
            times_N=None if times_N is None else to_device(np.asarray(times_N)[source_N], device),
            actions_NA=None if actions_NA is None else to_device(np.asarray(actions_NA)[source_N], device),
            all_targets=all_targets,
            tokens=None if kept_NS is None else EncoderTokens.of(kept_NS[source_N], lengths_W, device, least[0]),
            decoder_positions=decoder_positions,
        )

    @property
    def windows(self) -> int:
        """Return the number of windows, W."""
        return len(self.order)

    def in_input_order(self, rows_W: Tensor) -> Tensor:
        """Bring results [W, ...] from packed order into the order of the windows given to `pack`."""
        return rows_W[self.row_of_W]


def slices(begin: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices that gather the slices [begin, begin + length) one after another, and the offsets of the result.

    begin 2, 0, lengths 1, 2 -> indices 2 | 0 1, offsets 0 1 3
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], lengths), offsets
