"""Logits and cross-entropies of all levels, and their gradients, are those of float64. Runs where there is a GPU, or in
Triton's interpreter.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops import levels
from pipeline.ops.levels import cross_entropies, logits_of_levels, scored_cross_entropies

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


def slow_scores(logits: Sequence[Tensor], codes_XL: Tensor, score: str) -> list[list[float]]:
    """The entropy of each row of each level, or its cross-entropy, a sum over codes."""
    found = []
    for level, logits_XV in enumerate(logits):
        p_XV = logits_XV.detach().double().softmax(1).tolist()
        if score == "entropy":
            found.append([-sum(p * math.log(p) for p in p_V if p > 0) for p_V in p_XV])
        else:
            found.append([-math.log(p_V[code]) for p_V, code in zip(p_XV, codes_XL[:, level].tolist(), strict=True)])
    return found


@pytest.mark.parametrize("score", ["entropy", "loss"])
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize(
    ("rows", "widths", "spread"),
    [(1, (2,), 1.0), (7, (7, 64, 3, 1), 9.0), (141, (70, 256, 13), 1.0), *[(4099, (256, 256, 256, 20), 3.0)] * GPU],
)
def test_weighed_cross_entropies_and_scores_are_those_of_float64(
    rows: int,
    widths: Sequence[int],
    spread: float,
    kernels: bool,
    score: Literal["entropy", "loss"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(levels, "uses_kernels", lambda _: kernels)
    torch.manual_seed(rows)
    logits = [(torch.randn(rows, codes, device=DEVICE) * spread).requires_grad_() for codes in widths]
    codes_XL = torch.stack([torch.randint(codes, (rows,), device=DEVICE) for codes in widths], 1)
    weights_XL = torch.rand(rows, len(widths), device=DEVICE) * (torch.rand(rows, len(widths), device=DEVICE) > 0.3)
    first = torch.tensor(2.5, device=DEVICE, requires_grad=True)
    called = _count(monkeypatch, "scored_losses_of_levels")
    loss, scores_LX = scored_cross_entropies(logits, codes_XL, weights_XL, first, score)
    assert sum(called) == kernels
    assert not scores_LX.requires_grad
    gradients = torch.autograd.grad(loss * 3, [first, *logits])
    exact = [x.detach().double().requires_grad_() for x in logits]
    losses = [F.cross_entropy(x, codes_XL[:, level], reduction="none") for level, x in enumerate(exact)]
    expected = 2.5 + (torch.stack(losses, 1) * weights_XL).sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert float(gradients[0]) == 3.0
    for level, (ours, other) in enumerate(zip(gradients[1:], torch.autograd.grad(expected * 3, exact), strict=True)):
        torch.testing.assert_close(ours.double(), other, rtol=1e-5, atol=2e-6)
        assert not ours[weights_XL[:, level] == 0].any()  # exactly nothing
    torch.testing.assert_close(
        scores_LX.double().cpu(),
        torch.tensor(slow_scores(logits, codes_XL, score), dtype=torch.float64),
        rtol=1e-5,
        atol=2e-6,
    )
    assert (scores_LX >= 0).all()


def test_scores_of_logits_far_apart_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "uses_kernels", lambda _: True)
    logits = torch.tensor([[0.0, -800.0, -90.0], [300.0, 300.0, -300.0], [0.0, 0.0, 0.0]], device=DEVICE)
    codes_X1 = torch.zeros(3, 1, dtype=torch.int64, device=DEVICE)
    first, weights_X1 = torch.zeros((), device=DEVICE), torch.ones(3, 1, device=DEVICE)
    _, scores_1X = scored_cross_entropies([logits.requires_grad_()], codes_X1, weights_X1, first, "entropy")
    expected = torch.tensor([[0.0, math.log(2), math.log(3)]], device=DEVICE)
    torch.testing.assert_close(scores_1X, expected, rtol=1e-6, atol=1e-7)


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
