"""HSTU: its attention equals a float64 loop, and a layer equals the equations written out for one sequence."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import MakeBatch, MakeCausal
from typed import present

from pipeline.backbones.hstu import Hstu, HstuBlock
from pipeline.ops.layout import Layout
from pipeline.ops.pointwise import Kind, Times, time_buckets
from pipeline.ops.pointwise_attention import pointwise_attention
from pipeline.ops.reference import reference_pointwise

LENGTHS = [1, 1, 1, 4, 7, 7, 7, 7, 7]
LAYOUT = Layout.packed(torch.tensor(LENGTHS), 7)


def make_inputs(dtype: torch.dtype = torch.float64, heads: int = 3, width: int = 4) -> tuple[list[torch.Tensor], Times]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    def seconds() -> torch.Tensor:
        return torch.rand(sum(LENGTHS), generator=generator).mul(20).exp().long()

    tokens = [normal(sum(LENGTHS), heads, width) for _ in range(3)]
    return [*tokens, normal(heads, 7, 7), normal(128, heads)], Times(seconds(), seconds())


@pytest.mark.parametrize("kind", ["silu", "softplus"])
@pytest.mark.parametrize("timed", [True, False])
class TestEqualsTheReference:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
    )
    def test_outputs(self, kind: Kind, timed: bool, dtype: torch.dtype, tolerance: float) -> None:
        (q, k, v, bias, of_times), known = make_inputs(dtype)
        times, time_bias = (known, of_times) if timed else (None, None)
        out = pointwise_attention(q, k, v, LAYOUT.timed(times), bias, time_bias, kind)
        assert out.dtype == dtype
        expected = reference_pointwise(q, k, v, LENGTHS, bias, times, time_bias, kind)
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)

    def test_gradients_of_queries_keys_values_and_both_biases(self, kind: Kind, timed: bool) -> None:
        (q, k, v, bias, of_times), known = make_inputs()
        times, time_bias = (known, of_times) if timed else (None, None)
        wanted = [x for x in (q, k, v, bias, time_bias) if x is not None]
        grad = torch.randn(q.shape, dtype=torch.float64)
        ours = torch.autograd.grad(
            pointwise_attention(q, k, v, LAYOUT.timed(times), bias, time_bias, kind), wanted, grad
        )
        expected = torch.autograd.grad(
            reference_pointwise(q, k, v, LENGTHS, bias, times, time_bias, kind), wanted, grad
        )
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_times_fall_into_buckets_of_their_logarithm() -> None:
    assert time_buckets(torch.tensor([-(10**9), -1, 0, 1])).tolist() == [0, 0, 0, 0]
    for seconds in (2, 60, 3600, 86_400, 31_536_000, 10**9):
        assert time_buckets(torch.tensor([seconds])).item() == int(math.log(seconds) / 0.301)
    assert time_buckets(torch.tensor([2**62])).item() == 127


@pytest.mark.parametrize("kind", ["silu", "softplus"])
def test_a_layer_with_padded_heads_gives_the_same(
    kind: Kind, make_causal: MakeCausal, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_causal("hstu", d_model=10, heads=2, d_head=5, hstu_attention=kind, time_bias=False, dropout=0.0)
    assert isinstance(model, Hstu)
    block = hstu_blocks(model)[0].double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    h_Td = torch.randn(sum(LENGTHS), 10, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 7, 7, dtype=torch.float64)
    wanted = [h_Td, block.uvqk.weight, block.o.weight, present(block.o.bias)]
    results = []
    for padded in (False, True):
        monkeypatch.setattr("pipeline.backbones.hstu.uses_kernels", lambda _, padded=padded: padded)
        assert block.project(h_Td)[0].shape[2] == (8 if padded else 5)
        out = block(h_Td, LAYOUT, bias)
        results.append([out, *torch.autograd.grad(out.sin().sum(), wanted)])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def hstu_blocks(model: Hstu) -> list[HstuBlock]:
    return [block for block in model.blocks if isinstance(block, HstuBlock)]


def slow_hstu(model: Hstu, items: list[int], times: list[int], target: int) -> list[torch.Tensor]:
    """Logits of one window, layer by layer, from the equations; the docstring of `Times` defines the times."""
    config, catalogue = model.config, model.catalogue
    tokens, asked, happened = [], [], []
    for position, item in enumerate([*items, target]):
        fed = catalogue.codes_IL[item].tolist()[: None if position < len(items) else -1]
        for level, code in enumerate(fed):
            tokens.append(sum(catalogue.widths[:level]) + code)
            knows = position < len(items) and level == catalogue.levels - 1
            asked.append(times[position if knows else max(position - 1, 0)])
            happened.append(times[min(position, len(items) - 1)])
    h = model.tokens.weight[tokens] * config.d_model**0.5
    length, inner = len(tokens), config.heads * config.d_head
    for block in hstu_blocks(model):
        mean, variance = h.mean(1, keepdim=True), h.var(1, keepdim=True, unbiased=False)
        x = (h - mean) / (variance + 1e-6).sqrt() @ block.uvqk.weight.T
        u, v, q, k = (x * x.sigmoid()).split(inner, 1)
        bias, time_bias = block.bias(range(length), length), present(block.time_bias)
        rows = torch.zeros(length, inner, dtype=h.dtype)
        for head in range(config.heads):
            part = slice(head * config.d_head, (head + 1) * config.d_head)
            for i in range(length):
                for j in range(i + 1):
                    bucket = int(math.log(max(asked[i] - happened[j], 1)) / 0.301)
                    score = q[i, part] @ k[j, part] + bias[head, i, j] + time_bias[bucket, head]
                    rows[i, part] += score * score.sigmoid() / (i + 1) * v[j, part]
        h = h + F.layer_norm(rows, [inner], eps=1e-6) * u @ block.o.weight.T + block.o.bias
    states = F.layer_norm(h, [config.d_model], eps=1e-6)
    first = len(items) * catalogue.levels - 1
    return [head(states[first + level]) for level, head in enumerate(model.heads)]


@torch.no_grad()
def test_a_window_equals_the_equations_written_out(make_causal: MakeCausal, make_batch: MakeBatch) -> None:
    model = make_causal("hstu", separators=False).double()
    assert isinstance(model, Hstu)
    histories, targets_W = make_batch(model, count=4, longest=4)
    logits, start = model(histories, targets_W), 0
    for row, length in enumerate(histories.lengths_W.tolist()):
        part = slice(start, start + length)
        times = present(histories.times_N)[part].tolist()
        expected = slow_hstu(model, histories.items_N[part].tolist(), times, int(targets_W[row]))
        for ours, theirs in zip(logits, expected, strict=True):
            torch.testing.assert_close(ours[row], theirs, rtol=1e-9, atol=1e-9)
        start += length


@torch.no_grad()
def test_the_variant_of_intrrs_code_weighs_by_softplus_that_sums_to_one(
    make_causal: MakeCausal, make_batch: MakeBatch
) -> None:
    """One layer of the variant, written out: SiLU on U alone, scores over sqrt(D), no norm behind the attention."""
    model = make_causal("hstu", hstu_attention="softplus", decoder_layers=1, vectors_only=True).double()
    assert isinstance(model, Hstu)
    histories, _ = make_batch(model, count=1, seed=4, all_targets=True)
    length, block, inner = len(histories.items_N), hstu_blocks(model)[0], 24
    h = torch.randn(length, 16, dtype=torch.float64)
    x = F.layer_norm(h, [16], block.norm.weight, block.norm.bias) @ block.uvqk.weight.T + block.uvqk.bias
    u, v, q, k = (part.unflatten(1, (3, 8)) for part in x.split(inner, 1))
    scores = torch.einsum("ihd,jhd->hij", q, k) / 8**0.5 + block.bias(range(length), length)
    weights = (1 + scores.exp()).log().tril()
    mixed = torch.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdim=True), v)
    out = h + (mixed * u * u.sigmoid()).flatten(1) @ block.o.weight.T + block.o.bias
    torch.testing.assert_close(model.read(h, histories), F.layer_norm(out, [16], eps=1e-6))


@pytest.mark.parametrize("kind", ["silu", "softplus"])
def test_scores_far_below_zero_leave_outputs_and_gradients_finite(kind: Kind) -> None:
    (q, k, v, bias, _), _ = make_inputs(torch.float32)
    out = pointwise_attention(q, k, v, LAYOUT, bias - 500, None, kind)
    gradients = torch.autograd.grad(out.sum(), [q, k, v, bias])
    assert all(x.isfinite().all() for x in (out, *gradients))
