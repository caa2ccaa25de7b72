"""A layout says the same of every sequence as groups on a CPU and as spans where kernels run."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typed import present

from pipeline.ops import layout as module
from pipeline.ops.layout import Group, Layout
from pipeline.ops.pointwise import Times, time_buckets

CPU = torch.device("cpu")
sequences = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=12)


def of_groups(layout: Layout) -> list[tuple[int, int, int]]:
    """(slots of queries, slots of keys, real keys) of each sequence."""
    found = [(group.queries, group.keys, group.keys) for group in layout.groups for _ in range(group.sequences)]
    if layout.lengths_W is None:
        return found
    return [(queries, keys, real) for (queries, keys, _), real in zip(found, layout.lengths_W.tolist(), strict=True)]


OnKernels = Callable[[Callable[[], Layout]], Layout]


def of_spans(layout: Layout) -> list[tuple[int, int, int]]:
    spans = layout.spans
    assert spans is not None
    assert int(spans.classes[-1]) == len(spans.lengths_k)
    return list(
        zip(spans.starts_q.diff().tolist(), spans.starts_k.diff().tolist(), spans.lengths_k.tolist(), strict=True)
    )


@pytest.fixture
def on_kernels(monkeypatch: pytest.MonkeyPatch) -> OnKernels:
    """Builds a layout as on a device where kernels run."""

    def build(make: Callable[[], Layout]) -> Layout:
        with monkeypatch.context() as patch:
            patch.setattr(module, "uses_kernels", lambda _: True)
            return make()

    return build


@settings(max_examples=60)
@given(sequences)
def test_groups_and_spans_say_the_same_of_every_sequence(rows: list[tuple[int, int, int]]) -> None:
    rows = sorted(rows)
    lengths, queries = torch.tensor([row[0] for row in rows]), torch.tensor([row[2] for row in rows])
    capacities = (lengths + torch.tensor([row[1] for row in rows])).cummax(0).values

    def layouts() -> list[Layout]:
        packed, rounded_up = Layout.packed(lengths, 9), Layout.packed(lengths, 12, capacities_W=capacities)
        padded, equal = Layout.padded(lengths, 9), Layout.equal(len(rows), 4, CPU)
        decoder = Layout.packed(queries, 4, ascending=False)
        crossed = [keys.cross(asking) for keys in (packed, rounded_up, padded) for asking in (equal, decoder)]
        return [packed, rounded_up, padded, equal, decoder, *crossed, decoder.grouped_as(crossed[1])]

    groups = layouts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "uses_kernels", lambda _: True)
        spans = layouts()
    for on_cpu, on_gpu in zip(groups, spans, strict=True):
        assert on_cpu.spans is None
        assert not on_gpu.groups
        assert on_cpu.sequences == on_gpu.sequences == len(rows)
        assert of_groups(on_cpu) == of_spans(on_gpu)


def test_groups_are_maximal_runs_also_of_pairs() -> None:
    keys = Layout.packed(torch.tensor([2, 2, 5, 5, 5]), 5)
    assert keys.groups == (Group(2, 2, 2), Group(3, 5, 5))
    cross = keys.cross(Layout.packed(torch.tensor([1, 3, 3, 3, 1]), 3, ascending=False))
    assert cross.groups == (Group(1, 1, 2), Group(1, 3, 2), Group(2, 3, 5), Group(1, 1, 5))


def test_there_is_no_mask_where_every_slot_is_taken() -> None:
    lengths = torch.tensor([2, 3])
    assert Layout.packed(lengths, 3, capacities_W=lengths.clone()).lengths_W is None
    assert Layout.packed(lengths, 3, capacities_W=torch.tensor([3, 3])).lengths_W is not None


def test_kernels_find_sequences_out_of_order_by_what_bounds_them(on_kernels: OnKernels) -> None:
    lengths = torch.tensor([3, 1, 20, 2])
    layout = on_kernels(lambda: Layout.packed(lengths, 20, ascending=False))
    assert present(layout.spans).classes.tolist() == [0, 0, 4, 4, 4, 4]  # all in the class of 17 to 32


def test_what_kernels_cannot_hold_is_refused(on_kernels: OnKernels) -> None:
    with pytest.raises(ValueError, match="at most 512"):
        on_kernels(lambda: Layout.packed(torch.tensor([600]), 600))
    assert Layout.packed(torch.tensor([600]), 600).groups == (Group(1, 600, 600),)


def test_time_buckets_are_those_of_each_pair_of_a_sequence() -> None:
    lengths = [1, 2, 2, 4]
    asked, happened = torch.randint(10**7, (2, sum(lengths)), generator=torch.Generator().manual_seed(0))
    layout = Layout.packed(torch.tensor(lengths), 4)
    timed = layout.timed(Times(asked, happened))
    squares = [square for bucket in timed.buckets for square in bucket]
    ends = list(itertools.accumulate(lengths, initial=0))
    for square, begin, end in zip(squares, ends, ends[1:], strict=False):
        assert torch.equal(square, time_buckets(asked[begin:end, None] - happened[None, begin:end]))
    assert layout.timed(None) is layout
