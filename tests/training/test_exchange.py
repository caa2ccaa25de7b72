"""Gradients that are exchanged while the backward pass runs are the sums that one exchange afterwards would give."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pipeline.distributed import Done, Pending, World
from pipeline.training.exchange import GradientExchange, sum_after_pass
from pipeline.training.optimizer import backward


class Doubling(World):
    """A world of two processes that compute the same: every sum is twice the value. Notes the sizes of sums."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        object.__setattr__(self, "sums", [])
        object.__setattr__(self, "during", [])

    def sum(self, values: Tensor) -> Tensor:
        """Twice the values, in place."""
        return values.mul_(2)

    def begin_sum(self, values: Tensor) -> Pending:
        """Twice the values, at once; notes how many values, and how many layers the pass still has to go."""
        vars(self)["sums"].append(values.numel())
        vars(self)["during"].append(PASSED[-1] if PASSED else LAYERS)
        values.mul_(2)
        return Done()


LAYERS = 4
PASSED: list[int] = []  # layers whose backward pass is over


class Noted(torch.autograd.Function):
    """The identity, which notes in the backward pass that it has come to layer `number`."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor, number: int) -> Tensor:
        """Return the values."""
        ctx.number = number  # type: ignore[attr-defined]
        return values.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        """Note the layer."""
        PASSED.append(ctx.number)  # type: ignore[attr-defined]
        return gradients[0], None


def noted(values: Tensor, number: int) -> Tensor:
    """Return the values."""
    result: Tensor = Noted.apply(values, number)  # type: ignore[no-untyped-call]
    return result


class Network(nn.Module):
    """Some layers, and one more that losses depend on now and then."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(layers))
        self.rare = nn.Linear(5, 5)

    def forward(self, x: Tensor, *, rare: bool = False) -> Tensor:
        """Return a loss."""
        for number, layer in enumerate(self.layers):
            x = torch.tanh(layer(noted(x, number)))
        return (self.rare(x) if rare else x).square().sum()


def pairs() -> tuple[Network, Network]:
    """Two equal networks."""
    torch.manual_seed(3)
    one, two = Network(), Network()
    two.load_state_dict(one.state_dict())
    return one, two


def batches() -> Iterator[Tensor]:
    """Random inputs, for ever."""
    return (torch.randn(7, 5) for _ in itertools.count())


@pytest.mark.parametrize("bucket_bytes", [1, 150, 10**6])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("cleared", [True, False], ids=["cpu", "gpu"])
def test_sums_are_those_of_one_exchange_after_the_pass(bucket_bytes: int, parts: int, cleared: bool) -> None:
    """Over steps whose losses depend on other parameters; `cleared`: an update leaves no gradients, else zeros."""
    one, two = pairs()
    exchange = GradientExchange(list(two.parameters()), Doubling(), bucket_bytes)
    rates = [torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1) for model in (one, two)]
    source = batches()
    for step in range(6):
        for part in range(parts):
            x, rare = next(source), step in (2, 4) and part == 1 % parts
            backward(one(x, rare=rare), list(one.parameters()))
            exchange.backward(two(x, rare=rare), last=part + 1 == parts)
        for parameter in one.parameters():
            if parameter.grad is not None:
                parameter.grad *= 2
        for mine, other in zip(two.parameters(), one.parameters(), strict=True):
            assert (mine.grad is None) == (other.grad is None)
            if mine.grad is not None and other.grad is not None:
                torch.testing.assert_close(mine.grad, other.grad)
        for rate in rates:
            rate.step()
            rate.zero_grad(set_to_none=cleared)
    for mine, other in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_bucket_is_exchanged_before_the_pass_comes_to_the_first_layer() -> None:
    _, model = pairs()
    world = Doubling()
    exchange = GradientExchange(list(model.parameters()), world, bucket_bytes=4 * 30)  # a layer's
    source = batches()
    for last in (True, False, True):
        vars(world)["during"].clear()
        PASSED.clear()
        exchange.backward(model(next(source)), last=last)
        if not last:
            assert not vars(world)["sums"][4:], "only the last part of a step is exchanged"
    # A bucket for each layer, 3 2 1 0: it is sent before the pass goes on from the layer to the one before.
    assert vars(world)["sums"] == [30] * 8
    assert vars(world)["during"] == [4, 3, 2, 1]


def test_other_passes_over_the_parameters_exchange_nothing() -> None:
    _, model = pairs()
    world = Doubling()
    exchange = GradientExchange(list(model.parameters()), world)
    exchange.backward(model(torch.ones(2, 5)), last=True)
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    sent = len(vars(world)["sums"])
    torch.autograd.grad(model(torch.ones(3, 5)), list(model.layers.parameters()))
    assert len(vars(world)["sums"]) == sent
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None:
            assert torch.equal(gradient, parameter.grad if parameter.grad is not None else gradient + 1)


def test_one_sum_after_the_pass_gives_the_same_sums() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    unused = nn.Parameter(torch.randn(4))
    parameters = [*model.parameters(), unused]
    inputs = torch.randn(7, 6)
    backward(model(inputs).square().sum(), parameters)
    alone = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    sum_after_pass(parameters, Doubling())
    for parameter, gradient in zip(model.parameters(), alone, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)
    assert unused.grad is None
