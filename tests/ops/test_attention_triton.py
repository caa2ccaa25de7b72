"""The GPU kernels give what the float64 reference gives. Runs where there is a GPU."""

import pytest
import torch
from typed import present

pytest.importorskip("triton", reason="no GPU: Triton is not installed")

from benchmarks.attention_kernels import BOUNDS, Case, cases, errors

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_outputs_gradients_and_mass_equal_the_reference(case: Case) -> None:
    found = errors(case)
    assert all(error <= BOUNDS[case.dtype] for error in found.values()), found


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    from pipeline.ops.layout import Layout
    from pipeline.ops.triton.attention import triton_attention

    lengths = torch.arange(1, 90, device="cuda")
    q, k, v = (
        torch.randn(int(lengths.sum()), 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    bias = torch.randn(4, 201, device="cuda", requires_grad=True)
    spans = present(Layout.packed(lengths, 89).spans)

    def run(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        out, _ = triton_attention((q, k, v), spans, bias, dropout=0.2)
        return [out, *torch.autograd.grad(out, [q, k, v, bias], torch.ones_like(out))]

    for first, again, other in zip(run(1), run(1), run(2), strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_slots_of_no_sequence_get_zeros_whatever_was_in_memory() -> None:
    from pipeline.ops.layout import make_spans
    from pipeline.ops.triton.attention import triton_attention

    lengths = torch.tensor([3, 16, 40, 90, 140], device="cuda")
    starts = torch.nn.functional.pad((lengths + 7).cumsum(0), (1, 0))  # padding behind each sequence
    queries = torch.arange(6, device="cuda") * 4
    spans = make_spans(queries, starts, lengths, longest_q=4, longest_k=140)
    real_S = (
        (torch.arange(int(starts[-1]) + 9, device="cuda") - starts[:-1, None])
        .lt(lengths[:, None])
        .logical_and(torch.arange(int(starts[-1]) + 9, device="cuda") >= starts[:-1, None])
        .any(0)
    )
    q = torch.randn(20 + 9, 3, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    kv = torch.randn(len(real_S), 2, 3, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    try:
        out, _ = triton_attention((q, kv), spans, None)
        dq, dkv = torch.autograd.grad(out, [q, kv], torch.ones_like(out))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(not x.any() for x in (out[20:], dq[20:], dkv[~real_S]))
    assert all(x.isfinite().all() for x in (out, dq, dkv))
