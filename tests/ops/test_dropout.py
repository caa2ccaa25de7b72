"""Dropout with shared draws behaves like dropout."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from typed import gradient_of

from pipeline.ops.dropout import Dropout, ReluDropout, dropout_factors, hashed_mask


@pytest.mark.parametrize("p", [0.01, 0.1, 0.15, 0.5, 0.9])
def test_the_rate_is_right_and_the_mean_is_kept(p: float) -> None:
    torch.manual_seed(0)
    factors = dropout_factors(torch.Size([1000, 401]), p, torch.empty(0))
    assert (factors == 0).float().mean().item() == pytest.approx(p, abs=0.003)
    assert factors.max().item() == pytest.approx(1 / (1 - p), rel=1e-3)
    assert factors.mean().item() == pytest.approx(1, abs=0.01)


def test_a_rate_just_below_one_leaves_something() -> None:
    """It is rounded to a multiple of 1 / 65536, and never to 1."""
    torch.manual_seed(0)
    factors = dropout_factors(torch.Size([1000, 2000]), 1 - 1e-9, torch.empty(0))
    assert 0 < (factors > 0).sum() < 100
    assert factors.max() == 65536
    x = torch.ones(1000, 2000, requires_grad=True)
    y = ReluDropout(1 - 1e-9).train()(x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], (y > 0) * 65536.0)


def test_neighbours_that_share_a_draw_are_independent() -> None:
    torch.manual_seed(0)
    dropped = (dropout_factors(torch.Size([200_000, 4]), 0.3, torch.empty(0)) == 0).float()
    assert torch.allclose(torch.corrcoef(dropped.T), torch.eye(4), atol=0.01)


def test_torchs_generator_repeats_it() -> None:
    state = torch.get_rng_state()
    first = dropout_factors(torch.Size([99]), 0.5, torch.empty(0))
    second = dropout_factors(torch.Size([99]), 0.5, torch.empty(0))
    torch.set_rng_state(state)
    assert torch.equal(first, dropout_factors(torch.Size([99]), 0.5, torch.empty(0)))
    assert not torch.equal(first, second)


def test_the_gradient_passes_where_the_value_passed() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 20, requires_grad=True)
    y = Dropout(0.4)(x)
    y.backward(torch.ones_like(y))
    assert torch.allclose(gradient_of(x), y.detach() / x.detach())


def test_relu_dropout_is_dropout_of_a_relu() -> None:
    x = torch.randn(50, 20, requires_grad=True)
    grad = torch.randn(50, 20)
    torch.manual_seed(0)
    y = ReluDropout(0.4)(x)
    (ours,) = torch.autograd.grad(y, x, grad)
    torch.manual_seed(0)
    expected = Dropout(0.4)(F.relu(x))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, x, grad)[0])


@pytest.mark.parametrize(("module", "expected"), [(Dropout(0.4), lambda x: x), (ReluDropout(0.4), F.relu)])
def test_evaluation_drops_nothing(
    module: Dropout | ReluDropout, expected: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    x = torch.randn(50, 20)
    assert torch.equal(module.eval()(x), expected(x))


def test_the_hashed_mask_keeps_its_share_and_neighbours_know_nothing_of_each_other() -> None:
    torch.manual_seed(3)
    mask, again = (hashed_mask(torch.Size([1000, 1024]), 0.15, torch.device("cpu")) for _ in range(2))
    assert mask.float().mean() == pytest.approx(0.85, abs=0.002)
    for pairs in (mask[:, 1:] & mask[:, :-1], mask[1:] & mask[:-1], mask & again):
        assert pairs.float().mean() == pytest.approx(0.85**2, abs=0.002)
