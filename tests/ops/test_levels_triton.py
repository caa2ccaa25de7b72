"""Logits and cross-entropies of all levels, and their gradients, are those of float64. Runs where there is a GPU, or in
Triton's interpreter.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from pipeline.ops import levels
from pipeline.ops.levels import cross_entropies, logits_of_levels

pytest.importorskip("triton", reason="no GPU: Triton is not installed")
from pipeline.ops.triton import heads

GPU = torch.cuda.is_available()
pytestmark = pytest.mark.gpu(interpreter=True)
DEVICE = "cuda" if GPU else "cpu"
BOUND = 2e-6  # a float32 product of 128 terms


def results(h_XLd: Tensor, weights: list[Tensor], codes_XL: Tensor, scale_X: Tensor) -> list[Tensor]:
    """The logits, the losses, and the gradients of states and weights."""
    inputs = [x.detach().requires_grad_() for x in (h_XLd, *weights)]
    logits = logits_of_levels(inputs[0], inputs[1:])
    loss_X = cross_entropies(logits, codes_XL)
    # Of the logits alone too, as of a strategy that has a loss of its own
    total = (loss_X * scale_X).sum() + sum(x.square().mean() for x in logits)
    return [*logits, loss_X, *torch.autograd.grad(total, inputs)]


@pytest.mark.parametrize(
    ("rows", "widths", "width"),
    [(1, (2,), 16), (5, (7, 64, 3), 24), (140, (70, 256, 13, 1), 128), *[(4100, (256, 256, 256, 20), 128)] * GPU],
)
def test_results_are_those_of_float64(
    rows: int, widths: Sequence[int], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "uses_kernels", lambda _: True)
    torch.manual_seed(rows)
    h_XLd = torch.randn(rows, len(widths), width, device=DEVICE)
    weights = [torch.randn(codes, width, device=DEVICE) * width**-0.5 for codes in widths]
    codes_XL = torch.stack([torch.randint(codes, (rows,), device=DEVICE) for codes in widths], 1)
    scale_X = torch.rand(rows, device=DEVICE)
    called = _count(monkeypatch, "level_logits"), _count(monkeypatch, "losses_of_levels")
    ours = results(h_XLd, weights, codes_XL, scale_X)
    again = results(h_XLd, weights, codes_XL, scale_X)
    assert [sum(calls) for calls in called] == [2, 2]
    expected = results(h_XLd.double(), [weight.double() for weight in weights], codes_XL, scale_X.double())
    assert [sum(calls) for calls in called] == [2, 2]  # float64 is torch's
    for our, same, other in zip(ours, again, expected, strict=True):
        assert our.dtype == torch.float32
        assert torch.equal(our, same)
        assert (our.double() - other).norm() <= BOUND * other.norm() + 1e-6


def test_columns_of_one_head_are_levels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "uses_kernels", lambda _: True)
    torch.manual_seed(3)
    sizes = [2, 11, 3]
    joint = torch.randn(37, sum(sizes), device=DEVICE, requires_grad=True)
    codes_XL = torch.stack([torch.randint(size, (37,), device=DEVICE) for size in sizes], 1)
    called = _count(monkeypatch, "losses_of_levels")
    loss_X = cross_entropies(joint.split(sizes, 1), codes_XL)
    assert called == [1]
    exact = joint.detach().double().requires_grad_()
    expected_X = cross_entropies(exact.split(sizes, 1), codes_XL)
    (gradient,) = torch.autograd.grad(loss_X.square().sum(), joint)
    (expected,) = torch.autograd.grad(expected_X.square().sum(), exact)
    for our, other in ((loss_X, expected_X), (gradient, expected)):
        assert (our.double() - other).norm() <= BOUND * other.norm() + 1e-6


def test_wide_levels_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "uses_kernels", lambda _: True)
    called = _count(monkeypatch, "level_logits"), _count(monkeypatch, "losses_of_levels")
    h_XLd, weight = torch.randn(2, 1, 8, device=DEVICE), torch.randn(levels.MOST_CODES + 1, 8, device=DEVICE)
    results(h_XLd, [weight], torch.zeros(2, 1, dtype=torch.int64, device=DEVICE), torch.ones(2, device=DEVICE))
    assert called == ([], [])


def _count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    calls: list[int] = []
    function: Callable[..., object] = getattr(heads, name)

    def counted(*arguments: object) -> object:
        calls.append(1)
        return function(*arguments)

    monkeypatch.setattr(heads, name, counted)
    return calls
