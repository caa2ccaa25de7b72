"""The GPU kernels of HSTU's attention give what the float64 reference gives. Runs where there is a GPU.

Small inputs in float32 also run in Triton's interpreter (TRITON_INTERPRET=1).
"""

import itertools

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="no GPU: Triton is not installed")

from benchmarks.kernels_silu import BOUNDS, SiluCase, silu_cases, silu_errors
from pipeline.ops.layout import Spans, make_spans, whole_tiles
from pipeline.ops.pointwise import TIME_BUCKETS, Kind, Times, time_buckets
from pipeline.ops.reference import reference_pointwise
from pipeline.ops.triton.pointwise_attention import triton_pointwise
from pipeline.ops.triton.time_bucket_kernel import time_bucket_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("case", list(silu_cases()), ids=str)
def test_outputs_and_gradients_equal_the_reference(case: SiluCase) -> None:
    found = silu_errors(case)
    assert all(error <= BOUNDS[case.dtype] for error in found.values()), found


def spans_of(lengths: list[int]) -> Spans:
    sizes = torch.tensor(lengths, device=DEVICE)
    starts = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    return make_spans(starts, starts, sizes, longest_q=max(lengths), longest_k=max(lengths))


def random_times(tokens: int, ordered: bool) -> Times:
    """Whole minutes: of no such time would a GPU's less exact logarithm choose another bucket."""
    generator = torch.Generator().manual_seed(tokens)
    asked, happened = torch.randint(20_000, (2, tokens), generator=generator) * 60
    return Times(asked.cumsum(0), asked.cumsum(0)) if ordered else Times(asked, happened)


def rows_of(times: Times, spans: Spans) -> Tensor:
    on_device = Times(times.asked_T.to(DEVICE), times.happened_T.to(DEVICE))
    return time_bucket_rows(on_device, spans.starts_k, spans.lengths_k, whole_tiles(spans.longest_k))


@pytest.mark.gpu(interpreter=True)
@pytest.mark.parametrize(
    ("lengths", "kind", "ordered"),
    [
        ([1, 2, 17, 40], "silu", True),
        ([1, 2, 17, 40], "silu", False),
        ([1, 16, 30], "silu", None),
        ([3, 17, 70], "softplus", None),
        ([5, 70, 130], "silu", True),
        ([33, 140], "softplus", False),
    ],
)
def test_random_sequences_in_float32_equal_the_reference(lengths: list[int], kind: Kind, ordered: bool | None) -> None:
    heads, width, tokens, longest = 2, 10, sum(lengths), max(lengths)
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    q, k, v = (normal(tokens, heads, width) for _ in range(3))
    bias, table = normal(heads, 2 * longest - 1), normal(TIME_BUCKETS, heads)
    times = None if ordered is None else random_times(tokens, ordered)
    wanted = [q, k, v, bias] if times is None else [q, k, v, bias, table]
    position = torch.arange(longest)
    square = bias[:, position - position[:, None] + longest - 1]
    expected = reference_pointwise(q, k, v, lengths, square, times, table, kind)
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)

    spans = spans_of(lengths)
    buckets = None if times is None else rows_of(times, spans)
    ours = [x.detach().float().to(DEVICE).requires_grad_() for x in (q, k, v, bias, table)]
    our_q, our_k, our_v, our_bias, our_table = ours
    results = []
    for _ in range(2):
        out = triton_pointwise(our_q, our_k, our_v, spans, our_bias, buckets, our_table, kind)
        gradients = torch.autograd.grad(out, ours[: len(wanted)], gradient.float().to(DEVICE))
        results.append([out, *gradients])
    for first, again, exact in zip(*results, [expected, *torch.autograd.grad(expected, wanted, gradient)], strict=True):
        assert torch.equal(first, again)
        assert (first.double().cpu() - exact).norm() <= BOUNDS[torch.float32] * exact.norm()


@pytest.mark.gpu(interpreter=True)
def test_the_table_of_buckets_has_those_of_each_query_and_the_keys_up_to_it() -> None:
    lengths = [1, 2, 40, 70]
    times = random_times(sum(lengths), ordered=False)
    rows_TP = rows_of(times, spans_of(lengths)).cpu()
    for begin, end in itertools.pairwise(itertools.accumulate(lengths, initial=0)):
        expected = time_buckets(times.asked_T[begin:end, None] - times.happened_T[None, begin:end])
        assert torch.equal(rows_TP[begin:end, : end - begin].long().tril(), expected.tril())
