"""Describe how packed axes fall into sequences, in the form that suits the device.

Callers build a `Layout` and pass it on. On a CPU it holds groups: runs of equally long sequences, which batched matrix
products can view without a copy. Where kernels run it holds spans: offsets and lengths that stay on the device, so that
nothing waits for it. The factories choose by the device of their tensors; no caller needs to know.

Sequences of 2, 2 and 5 tokens are, on a CPU, Group(2, 2, 2) and Group(1, 5, 5): sequences, queries, keys. Where kernels
run they are starts 0 2 4 9 and lengths 2 2 5.

Shape legend: T query and S key positions of all sequences, W sequences; n sequences of one group, Q queries and J keys
of each; H heads; P columns of a table of time buckets.
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
    """Tell whether the Triton kernels work on tensors of this device; all code asks this function.

    Triton comes with CUDA builds of torch only.
    """
    return device.type == "cuda"


@dataclass(frozen=True)
class Mass:
    """`Mass` says which weights of a self-attention are summed into the mass that each key receives (RASTP, Eq. 5)."""

    after_dropout: bool = False
    padded_queries: bool = False  # count the weights of padding's queries too


@dataclass(frozen=True)
class Group:
    """A `Group` is a run of consecutive sequences with equal sizes."""

    sequences: int
    queries: int  # of each sequence
    keys: int  # of each sequence


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A `Layout` says how the packed axes of queries and keys fall into sequences.

    `packed`, `padded`, `equal` and `cross` build it. Sizes of groups are Python numbers, sizes of spans stay on the
    device.
    """

    groups: tuple[Group, ...] = ()
    # Where sequences have empty slots (padding): int64 [W], how many of the first keys of each are real
    lengths_W: Tensor | None = None
    # Where tokens were pruned: int64 [S], the row and column of the bias that belongs to each token of a self-attention
    positions_S: Tensor | None = None
    # Where tokens have times: per group int64 [n, Q, J], the bucket of the time between query and key
    buckets: tuple[Tensor, ...] = ()
    spans: "Spans | None" = None  # where kernels run, instead of all the fields above
    # Beside spans, instead of buckets: uint8 [T, P], the bucket of each token and the n-th key of its sequence
    bucket_rows: Tensor | None = None

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
        """Build the self-attention of sequences that lie one after another.

        lengths 2 2 4, capacities 2 3 5: the sequences begin at slots 0 2 5, and slots 4 and 9 are empty

        Args:
            lengths_W: int64, tokens of each sequence.
            longest: bound of the slots that a sequence takes, known on the host.
            starts: int64 [W + 1], where each sequence begins and the last one ends, if the caller knows it.
            capacities_W: int64, ascending: slots that each sequence takes, where that may be more than its tokens.
            positions_S: int64, where tokens were pruned: the position of each token before pruning.
            reach: bound of those positions.
            ascending: whether lengths (or capacities, where given) ascend, so that those of a class are neighbours.
        """
        if not uses_kernels(lengths_W.device):
            return _in_groups(lengths_W, capacities_W, positions_S)
        if starts is None:
            starts = F.pad((lengths_W if capacities_W is None else capacities_W).cumsum(0), (1, 0))
        # Kernels find classes in an ascending tensor: where lengths do not ascend, one bound puts all into one class.
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
        """Build the self-attention of sequences of `capacity` slots each, of which the first `lengths_W` are real."""
        windows = len(lengths_W)
        device = lengths_W.device
        if not uses_kernels(device):
            return cls(groups=(Group(windows, capacity, capacity),), lengths_W=lengths_W)
        starts = torch.arange(windows + 1, device=device) * capacity
        return cls(spans=make_spans(starts, starts, lengths_W, longest_q=capacity, longest_k=capacity))

    @classmethod
    def equal(cls, sequences: int, length: int, device: torch.device) -> "Layout":
        """Build the self-attention of sequences of one length, none of them padded."""
        if not uses_kernels(device):
            return cls(groups=(Group(sequences, length, length),))
        starts = torch.arange(sequences + 1, device=device) * length
        return cls(spans=make_spans(starts, starts, starts.diff(), longest_q=length, longest_k=length))

    def cross(self, queries: "Layout") -> "Layout":
        """Build the attention of the queries that `queries` lays out to the keys of this layout."""
        if self.spans is None or queries.spans is None:
            return Layout(groups=_pairs(queries.groups, self.groups), lengths_W=self.lengths_W)
        # Classes go by the keys; kernels walk over however many queries a sequence has.
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
        """Return the same self-attention in the groups of `cross`, whose queries are these sequences.

        Gradients are summed group by group, so that the groups decide the last bits of a result.
        """
        groups = tuple(Group(group.sequences, group.queries, group.queries) for group in cross.groups)
        return self if self.spans is not None else replace(self, groups=groups)

    def timed(self, times: Times | None) -> "Layout":
        """Return this layout with the buckets of times, which are computed here, once for all layers of a network."""
        if times is None:
            return self
        if self.spans is not None:
            from pipeline.ops.triton.time_bucket_kernel import time_bucket_rows

            spans = self.spans
            columns = whole_tiles(spans.longest_k)
            return replace(self, bucket_rows=time_bucket_rows(times, spans.starts_k, spans.lengths_k, columns))
        sizes = [group.sequences * group.keys for group in self.groups]
        buckets = tuple(
            time_buckets(asked.view(group.sequences, -1, 1) - happened.view(group.sequences, 1, -1))
            for group, asked, happened in zip(
                self.groups, torch.split(times.asked_T, sizes), torch.split(times.happened_T, sizes), strict=True
            )
        )
        return replace(self, buckets=buckets)

    @property
    def bias_by_distance(self) -> bool:
        """Tell whether attention takes its position bias by relative distance, [H, distances], not as [H, Q, J]."""
        return self.spans is not None

    @property
    def sequences(self) -> int:
        """Return the number of sequences, W."""
        return sum(group.sequences for group in self.groups) if self.spans is None else len(self.spans.lengths_k)

    def real_nJ(self) -> list[Tensor | None]:
        """Return for each group where a key is a real token, bool [n, J]; None where all are."""
        if self.lengths_W is None:
            return [None] * len(self.groups)
        lengths_by_group = torch.split(self.lengths_W, [group.sequences for group in self.groups])
        return [
            torch.arange(group.keys, device=lengths.device) < lengths[:, None]
            for group, lengths in zip(self.groups, lengths_by_group, strict=True)
        ]


def _in_groups(lengths_W: Tensor, capacities_W: Tensor | None, positions_S: Tensor | None) -> Layout:
    """Group runs of equal sizes, read off the tensor: on a CPU that waits for nothing.

    lengths 2, 2, 5 -> Group(2, 2, 2), Group(1, 5, 5)
    """
    sizes_W = lengths_W if capacities_W is None else capacities_W
    sizes, counts = torch.unique_consecutive(sizes_W, return_counts=True)
    groups = tuple(Group(count, size, size) for count, size in zip(counts.tolist(), sizes.tolist(), strict=True))
    # A mask costs time in every layer, so there is none where every slot is filled.
    spare = capacities_W is not None and not torch.equal(capacities_W, lengths_W)
    return Layout(groups=groups, lengths_W=lengths_W if spare else None, positions_S=positions_S)


def _pairs(queries: Sequence[Group], keys: Sequence[Group]) -> tuple[Group, ...]:
    """Group runs of sequences with equal queries and equal keys.

    queries 3 x 4 (three sequences of four), keys 1 x 2 and 2 x 5 -> Group(1, 4, 2), Group(2, 4, 5)
    """
    pairs: list[Group] = []
    # How many sequences are left of each group: 3, and 1, 2; q and k are the groups at hand.
    left_q = [group.sequences for group in queries]
    left_k = [group.sequences for group in keys]
    q = k = 0
    while q < len(queries) and k < len(keys):
        # The next run ends where one of the two groups at hand ends: min(3, 1) = 1 sequence, then min(2, 2) = 2.
        sequences = min(left_q[q], left_k[k])
        pairs.append(Group(sequences, queries[q].queries, keys[k].keys))
        left_q[q] -= sequences
        left_k[k] -= sequences
        q, k = q + (left_q[q] == 0), k + (left_k[k] == 0)
    return tuple(pairs)


# ------------------------------------------------------------------------------------------ input of the kernels


@dataclass(frozen=True, kw_only=True)
class Spans:
    """`Spans` say where sequences lie on the packed axes; all on the device, so that nothing waits for it.

    The sequences are sorted by `lengths_k`, shortest first, and each has at least one key. Keys beyond a sequence's
    length (padding) are not seen.
    """

    starts_q: Tensor  # int32 [W + 1]: where the queries of each sequence begin, and the last ones end
    starts_k: Tensor  # int32 [W + 1]: where the keys of each sequence begin, and the last ones end
    lengths_k: Tensor  # int32 [W]: keys of each sequence that are real
    classes: Tensor  # int32 [len(CLASSES) + 1]: the first sequence of each class
    longest_q: int
    longest_k: int
    capacities_k: Tensor | None = None  # ascending bounds of lengths_k, where those are not sorted
    # In self-attention where tokens were pruned: int32 [T], their positions before, and a bound of these
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
    """Build spans from integer tensors of any type.

    In self-attention `starts_q` is the same tensor as `starts_k`, and `longest_k` counts padding.

    lengths 3 9 16 17 -> classes 0 3 4 4 4 4: three sequences of at most 16 keys, one of at most 32, none longer

    Raises:
        ValueError: a sequence may be longer than the kernels can hold.
    """
    if max(longest_k, longest_q if starts_q is starts_k else 0) > CLASSES[-1]:
        raise ValueError(f"sequences of {longest_k} positions: the GPU kernels hold at most {CLASSES[-1]}")
    # In self-attention a tile must hold a sequence's queries too, which padding makes longer than its keys.
    sizes = capacities_k if capacities_k is not None else starts_q.diff() if starts_q is starts_k else lengths_k
    # The first sequence of each class is the first one longer than the class before allows: of 0, 16, 32, ... keys.
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
    """Return where classes end; the tensor is cached because a CUDA graph cannot record a copy from the host."""
    return torch.tensor((0, *CLASSES), device=device, dtype=dtype)


def whole_tiles(length: int) -> int:
    """Return how many positions the tiles that hold a sequence have at most: a multiple of 128."""
    return -(-length // 128) * 128


def separate(qkv: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """View the queries, keys and values that lie in one, two or three tensors, as `packed_attention` takes them."""
    q_THD, k_SHD, v_SHD = (part for x in qkv for part in (x.unbind(1) if x.ndim == 4 else (x,)))
    return q_THD, k_SHD, v_SHD
