"""How packed axes fall into sequences, in the form that the device at hand works with.

`Layout` is what callers build and pass around. On a CPU it holds groups: runs of equally long sequences, which batched
matrix products can view without a copy. Where kernels run it holds spans: offsets and lengths that stay on the device,
so that nothing waits for it. The factories choose by the device of their tensors; no caller needs to know.

Shape legend: T query and S key positions of all sequences, W sequences; n sequences of one group, Q queries and K keys
of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.pointwise import Times, time_buckets

CLASSES = (16, 32, 64, 128, 512)  # longest key sequence of each launch


def uses_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels work on tensors of this device. The one place that says so; Triton itself comes with
    CUDA builds of torch only.
    """
    return device.type == "cuda"


@dataclass(frozen=True)
class Mass:
    """Which attention weights of a self-attention are summed into the mass that each key receives (RASTP, Eq. 5)."""

    after_dropout: bool = False
    padded_queries: bool = False  # those of padding too


@dataclass(frozen=True)
class Group:
    """A run of consecutive sequences with equal sizes."""

    sequences: int
    queries: int
    keys: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the packed axes of queries and keys fall into sequences; `packed`, `padded`, `equal` and `cross` build it.

    Sizes of groups are Python numbers, those of spans stay on the device.
    """

    groups: tuple[Group, ...] = ()
    # Where sequences have places to spare (padding): int64 [W], how many of the first keys of each are real
    lengths_n: Tensor | None = None
    # Where tokens were pruned: int64 [S], the row and column of the bias that belongs to each token of a self-attention
    positions_S: Tensor | None = None
    # Where tokens have times: per group int64 [n, Q, K], the bucket of the time between query and key
    buckets: tuple[Tensor, ...] = ()
    spans: "Spans | None" = None  # where kernels run, instead of all these
    times: Times | None = None  # beside spans

    @classmethod
    def packed(
        cls,
        lengths_W: Tensor,
        longest: int,
        *,
        starts: Tensor | None = None,
        capacities_W: Tensor | None = None,
        positions_S: Tensor | None = None,
        reach: int = 0,
        ascending: bool = True,
    ) -> "Layout":
        """Self-attention of sequences that lie one after another.

        Args:
            lengths_W: int64, tokens of each sequence.
            longest: bound of what a sequence takes, known on the host.
            starts: int64 [W + 1], where each sequence begins and the last one ends, where the caller knows it.
            capacities_W: int64, ascending: places that each sequence takes, where that may be more than its tokens.
            positions_S: int64, where tokens were pruned: the position of each token before.
            reach: bound of those positions.
            ascending: whether lengths (or rooms, where given) ascend, so that kernels find those of a class together.
        """
        if not uses_kernels(lengths_W.device):
            return _in_groups(lengths_W, capacities_W, positions_S)
        if starts is None:
            starts = F.pad((lengths_W if capacities_W is None else capacities_W).cumsum(0), (1, 0))
        if not ascending:
            capacities_W = torch.full_like(lengths_W, longest)
        spans = make_spans(
            starts,
            starts,
            lengths_W,
            longest_q=longest,
            longest_k=longest,
            capacities_k=capacities_W,
            positions=positions_S,
            reach=reach,
        )
        return cls(spans=spans)

    @classmethod
    def padded(cls, lengths_W: Tensor, capacity: int) -> "Layout":
        """Self-attention of sequences with `capacity` places each, of which their first `lengths_W` are real."""
        windows, device = len(lengths_W), lengths_W.device
        if not uses_kernels(device):
            return cls(groups=(Group(windows, capacity, capacity),), lengths_n=lengths_W)
        starts = torch.arange(windows + 1, device=device) * capacity
        return cls(spans=make_spans(starts, starts, lengths_W, longest_q=capacity, longest_k=capacity))

    @classmethod
    def equal(cls, sequences: int, length: int, device: torch.device) -> "Layout":
        """Self-attention of sequences of one length, none of them padded."""
        if not uses_kernels(device):
            return cls(groups=(Group(sequences, length, length),))
        starts = torch.arange(sequences + 1, device=device) * length
        return cls(spans=make_spans(starts, starts, starts.diff(), longest_q=length, longest_k=length))

    def cross(self, queries: "Layout") -> "Layout":
        """The attention of as many sequences of queries, laid out by `queries`, to the keys of this layout."""
        if self.spans is None or queries.spans is None:
            return Layout(groups=_pairs(queries.groups, self.groups), lengths_n=self.lengths_n)
        q, k = queries.spans, self.spans
        spans = make_spans(
            q.starts_q,
            k.starts_k,
            k.lengths_k,
            longest_q=q.longest_q,
            longest_k=k.longest_k,
            capacities_k=k.capacities_k,
        )
        return Layout(spans=spans)

    def grouped_as(self, cross: "Layout") -> "Layout":
        """The same self-attention in the groups of `cross`, whose queries are these sequences. Gradients are summed
        group by group, so that the groups decide the last bits of a result.
        """
        groups = tuple(Group(group.sequences, group.queries, group.queries) for group in cross.groups)
        return self if self.spans is not None else replace(self, groups=groups)

    def timed(self, times: Times | None) -> "Layout":
        """The same with times. Groups get their time buckets here, once for all layers of a network."""
        if times is None:
            return self
        if self.spans is not None:
            return replace(self, times=times)
        sizes = [group.sequences * group.keys for group in self.groups]
        buckets = tuple(
            time_buckets(asked.view(group.sequences, -1, 1) - happened.view(group.sequences, 1, -1))
            for group, asked, happened in zip(
                self.groups, times.asked_T.split(sizes), times.happened_T.split(sizes), strict=True
            )
        )
        return replace(self, buckets=buckets)

    @property
    def bias_by_distance(self) -> bool:
        """Whether attention takes its position bias by relative distance, [H, R], instead of [H, Q, K]."""
        return self.spans is not None

    @property
    def sequences(self) -> int:
        """W."""
        return sum(group.sequences for group in self.groups) if self.spans is None else len(self.spans.lengths_k)

    def real_nK(self) -> list[Tensor | None]:
        """For each group bool [n, K], True where a key is a real token; None where all are."""
        if self.lengths_n is None:
            return [None] * len(self.groups)
        return [
            torch.arange(group.keys, device=lengths.device) < lengths[:, None]
            for group, lengths in zip(
                self.groups, self.lengths_n.split([group.sequences for group in self.groups]), strict=True
            )
        ]


def _in_groups(lengths_W: Tensor, capacities_W: Tensor | None, positions_S: Tensor | None) -> Layout:
    """Runs of equal sizes, read off the tensor: on a CPU that waits for nothing.

    lengths 2, 2, 5 -> Group(2, 2, 2), Group(1, 5, 5)
    """
    sizes_W = lengths_W if capacities_W is None else capacities_W
    sizes, counts = torch.unique_consecutive(sizes_W, return_counts=True)
    groups = tuple(Group(count, size, size) for count, size in zip(counts.tolist(), sizes.tolist(), strict=True))
    # A mask costs time in every layer, so there is none where every place is taken.
    spare = capacities_W is not None and not torch.equal(capacities_W, lengths_W)
    return Layout(groups=groups, lengths_n=lengths_W if spare else None, positions_S=positions_S)


def _pairs(queries: Sequence[Group], keys: Sequence[Group]) -> tuple[Group, ...]:
    """Runs of sequences with equal queries and equal keys.

    queries 3 x 4 (three sequences of four), keys 1 x 2 and 2 x 5 -> Group(1, 4, 2), Group(2, 4, 5)
    """
    pairs, left_q, left_k = list[Group](), [group.sequences for group in queries], [group.sequences for group in keys]
    q = k = 0
    while q < len(queries) and k < len(keys):
        # The next run ends where the first of the two groups at hand ends.
        sequences = min(left_q[q], left_k[k])
        pairs.append(Group(sequences, queries[q].queries, keys[k].keys))
        left_q[q] -= sequences
        left_k[k] -= sequences
        q, k = q + (left_q[q] == 0), k + (left_k[k] == 0)
    return tuple(pairs)


# ------------------------------------------------------------------------------------------ what the kernels read


@dataclass(frozen=True, kw_only=True)
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
    capacities_k: Tensor | None = None  # ascending bounds of lengths_k, where those are not sorted
    # In self-attention where tokens were pruned: int32 [T], the places that they had, and how many there were at most
    positions: Tensor | None = None
    reach: int = 0


def make_spans(
    starts_q: Tensor,
    starts_k: Tensor,
    lengths_k: Tensor,
    *,
    longest_q: int,
    longest_k: int,
    capacities_k: Tensor | None = None,
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
    sizes = capacities_k if capacities_k is not None else starts_q.diff() if starts_q is starts_k else lengths_k
    classes = torch.searchsorted(sizes.contiguous(), _edges(sizes.device, sizes.dtype), right=True)
    return Spans(
        starts_q=starts_q.int(),
        starts_k=starts_k.int(),
        lengths_k=lengths_k.int(),
        classes=classes.int(),
        longest_q=longest_q,
        longest_k=longest_k,
        capacities_k=capacities_k,
        positions=None if positions is None else positions.int(),
        reach=reach,
    )


@cache
def _edges(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Where classes end; kept, because a CUDA graph cannot record a copy from the host."""
    return torch.tensor((0, *CLASSES), device=device, dtype=dtype)


def whole_tiles(length: int) -> int:
    """Places of the tiles that hold a sequence, at most."""
    return -(-length // 128) * 128


def separate(qkv: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the queries, keys and values that lie in one, two or three tensors, as `packed_attention` takes them."""
    q_THD, k_SHD, v_SHD = (part for x in qkv for part in (x.unbind(1) if x.ndim == 4 else (x,)))
    return q_THD, k_SHD, v_SHD
