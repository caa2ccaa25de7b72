"""How packed axes fall into sequences: groups of equal lengths on a CPU, spans for the kernels of a GPU.

Shape legend: T query and S key positions of all sequences, W sequences; n sequences of one group, K keys of each.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Group:
    """A run of consecutive sequences with equal sizes."""

    sequences: int
    queries: int
    keys: int


@dataclass(frozen=True)
class Layout:
    """How the packed axes of queries and keys fall into sequences.

    The sizes of groups are Python numbers and those of spans stay on the device, so that nothing waits for it.
    """

    groups: tuple[Group, ...] = ()
    # Where sequences have places to spare (padding): int64 [sequences], how many of the first keys of each are real
    lengths_n: Tensor | None = None
    # Where tokens were pruned: int64 [S], the row and column of the bias that belongs to each token of a self-attention
    positions_S: Tensor | None = None
    spans: "Spans | None" = None  # on a GPU, instead of all these

    def with_queries(self, queries: int) -> "Layout":
        """As many queries of each sequence, against the keys of this layout of groups."""
        return Layout(tuple(replace(group, queries=queries) for group in self.groups), self.lengths_n)

    def real_nK(self) -> list[Tensor | None]:
        """Of each group, True where a key is a real token, bool [sequences, keys]; None where all are."""
        if self.lengths_n is None:
            return [None] * len(self.groups)
        return [
            torch.arange(group.keys, device=lengths.device) < lengths[:, None]
            for group, lengths in zip(
                self.groups, self.lengths_n.split([group.sequences for group in self.groups]), strict=True
            )
        ]


@dataclass(frozen=True)
class Mass:
    """Which attention weights of a self-attention are summed into the mass that each key receives (RASTP, Eq. 5)."""

    after_dropout: bool = False
    padded_queries: bool = False  # those of padding too


@dataclass(frozen=True)
class Spans:
    """Where sequences lie on the packed axes; all on the device, so that nothing waits for it.

    The sequences are sorted by `lengths_k`, shortest first, and each has a key at least. Keys beyond a sequence's
    length (padding) are not seen.
    """

    starts_q: Tensor  # int32 [W + 1]
    starts_k: Tensor  # int32 [W + 1]
    lengths_k: Tensor  # int32 [W]
    classes: Tensor  # int32 [len(CLASSES) + 1]: the first sequence of each class
    longest_q: int
    longest_k: int
    rooms_k: Tensor | None = None  # ascending bounds of lengths_k, where those are not sorted
    # Of self-attention where tokens were pruned: int32 [T], the places that they had, and how many there were at most
    positions: Tensor | None = None
    reach: int = 0


def make_spans(
    starts_q: Tensor,
    starts_k: Tensor,
    lengths_k: Tensor,
    longest_q: int,
    longest_k: int,
    rooms_k: Tensor | None = None,
    positions: Tensor | None = None,
    reach: int = 0,
) -> Spans:
    """Spans from integer tensors of any type. In self-attention `starts_q` is `starts_k` itself, and `longest_k` counts
    padding.

    Raises:
        ValueError: a sequence may be longer than the kernels can hold.
    """
    if max(longest_k, longest_q if starts_q is starts_k else 0) > CLASSES[-1]:
        raise ValueError(f"sequences of {longest_k} positions: the GPU kernels hold at most {CLASSES[-1]}")
    # In self-attention a tile must hold a sequence's queries too, which padding makes longer than its keys.
    sizes = rooms_k if rooms_k is not None else starts_q.diff() if starts_q is starts_k else lengths_k
    classes = torch.searchsorted(sizes.contiguous(), _edges(sizes.device, sizes.dtype), right=True)
    return Spans(
        starts_q.int(),
        starts_k.int(),
        lengths_k.int(),
        classes.int(),
        longest_q,
        longest_k,
        rooms_k,
        None if positions is None else positions.int(),
        reach,
    )


@cache
def _edges(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Where classes end; kept, because a CUDA graph cannot record a copy from the host."""
    return torch.tensor((0, *CLASSES), device=device, dtype=dtype)


CLASSES = (16, 32, 64, 128, 512)  # longest key sequence of each launch


def whole_tiles(length: int) -> int:
    """Places of the tiles that hold a sequence, at most."""
    return -(-length // 128) * 128


@dataclass(frozen=True)
class Times:
    """Seconds at each token: as a query, the time it asks from; as a key, the time of its item.

    A query knows its item's time only once it knows the whole item: the code of level l < L asks from the time of the
    item before, as it will when the item is generated. Keys of the item itself then lie ahead: no time has passed.
    """

    asked_T: Tensor  # int64
    happened_T: Tensor  # int64
