"""Packed attention equals attention one sequence and one head at a time, in float64."""

from typing import NamedTuple

import pytest
import torch
from typed import present

from pipeline.ops.attention import attention, packed_attention
from pipeline.ops.layout import Layout
from pipeline.ops.reference import reference_attention

CPU = torch.device("cpu")
SELF = Layout.packed(torch.tensor([1, 1, 1, 4, 7, 7, 7, 7, 7]), 7)
CROSS = Layout.packed(torch.tensor([1, 1, 6, 6, 6, 9]), 9).cross(Layout.equal(6, 4, CPU))
ONE_QUERY = Layout.equal(6, 3, CPU).cross(Layout.equal(6, 1, CPU))
PADDED = Layout.padded(torch.tensor([1, 3, 5, 5]), 5)
PADDED_CROSS = PADDED.cross(Layout.equal(4, 2, CPU))


class Inputs(NamedTuple):
    """Queries, keys and values [tokens, H, D], and a bias [H, queries, keys] of the longest sequences."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor | None


def make_inputs(
    layout: Layout, dtype: torch.dtype = torch.float64, bias: bool = True, heads: int = 3, width: int = 4
) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    sides = ("queries", "keys")
    queries, keys = (sum(group.sequences * getattr(group, side) for group in layout.groups) for side in sides)
    longest = [max(getattr(group, side) for group in layout.groups) for side in sides]
    return Inputs(
        normal(queries, heads, width),
        normal(keys, heads, width),
        normal(keys, heads, width),
        normal(heads, *longest) if bias else None,
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("layout", "causal"),
    [
        pytest.param(SELF, False, id="self"),
        pytest.param(SELF, True, id="causal"),
        pytest.param(CROSS, False, id="cross"),
        pytest.param(ONE_QUERY, False, id="one query"),
        pytest.param(PADDED, False, id="padded"),
        pytest.param(PADDED_CROSS, False, id="padded cross"),
    ],
)
class TestEqualsTheReference:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
    )
    def test_outputs(self, layout: Layout, causal: bool, bias: bool, dtype: torch.dtype, tolerance: float) -> None:
        q, k, v, b = make_inputs(layout, dtype, bias)
        out, _ = attention(q, k, v, layout, b, causal=causal)
        assert out.dtype == dtype
        expected = reference_attention(q, k, v, layout, b, causal=causal)
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)

    def test_gradients_of_queries_keys_values_and_bias(self, layout: Layout, causal: bool, bias: bool) -> None:
        inputs = make_inputs(layout, bias=bias)
        wanted = [x for x in inputs if x is not None]
        grad = torch.randn(inputs.q.shape, dtype=torch.float64)
        q, k, v, b = inputs
        outputs = (
            attention(q, k, v, layout, b, causal=causal)[0],
            reference_attention(q, k, v, layout, b, causal=causal),
        )
        ours, expected = (torch.autograd.grad(output, wanted, grad) for output in outputs)
        for mine, reference in zip(ours, expected, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", [SELF, CROSS, PADDED], ids=["self", "cross", "padded"])
def test_gradients_with_dropout_are_those_of_the_weights_that_were_kept(layout: Layout) -> None:
    inputs = make_inputs(layout)

    def seeded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return attention(q, k, v, layout, b, dropout=0.4)[0]

    assert torch.autograd.gradcheck(seeded, [*inputs[:3], present(inputs.bias)], fast_mode=True)


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    layout = Layout.equal(1, 50, CPU).cross(Layout.equal(1, 1, CPU))
    q, k, v, _ = make_inputs(layout, bias=False)
    torch.manual_seed(0)
    draws = torch.stack([attention(q, k, v, layout, dropout=0.3)[0] for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), attention(q, k, v, layout)[0], rtol=0, atol=0.05)
    assert draws.std(0).min() > 0.05


def test_strided_queries_keys_and_values_of_one_projection_are_taken_as_they_are() -> None:
    q, k, v = torch.randn(3 + 4 + 35, 3, 2, 4).unbind(1)
    expected, _ = attention(q.contiguous(), k.contiguous(), v.contiguous(), SELF)
    torch.testing.assert_close(attention(q, k, v, SELF)[0], expected)


def test_what_one_product_made_may_stay_together() -> None:
    q, k, v, b = make_inputs(SELF)
    expected, _ = attention(q, k, v, SELF, b)
    together = torch.stack([q, k, v], 1)
    splits: list[tuple[torch.Tensor, ...]] = [(together,), (q, together[:, 1:]), (q, k, v)]
    for parts in splits:
        torch.testing.assert_close(packed_attention(parts, SELF, b)[0], expected)
