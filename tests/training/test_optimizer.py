"""Optimizer, schedule, clipping and averaged weights against torch and pencil arithmetic."""

import math
from typing import Literal, cast

import pytest
import torch
from settings import some
from torch import nn
from typed import gradient_of

from pipeline.packing.backbone import Backbone
from pipeline.training.config import TrainConfig
from pipeline.training.optimizer import Average, autocast, backward, build_optimizer, learning_rate, set_rate, update


class Small(nn.Module):
    """A matrix, a norm gain and a table of position biases, named as in the backbones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 3, bias=False)
        self.norm = nn.Parameter(torch.rand(3))
        self.encoder_bias = nn.Embedding(4, 2)


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_backward_adds_to_the_gradients_at_hand_and_leaves_alone_what_the_loss_does_not_reach() -> None:
    ours, reference = Small(), Small()
    for factor in (1.0, 3.0):
        backward(factor * ours.linear(ours.norm).square().sum(), list(ours.parameters()))
        (factor * reference.linear(reference.norm).square().sum()).backward()
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        torch.testing.assert_close(a.grad, b.grad)
    assert ours.encoder_bias.weight.grad is None


def test_adam_is_torch_adam_with_l2_on_everything() -> None:
    config = some(TrainConfig, optimizer="adam", learning_rate=0.01, weight_decay=0.1)
    ours, reference = Small(), Small()
    optimizer = build_optimizer(ours, config)
    plain = torch.optim.Adam(reference.parameters(), 0.01, weight_decay=0.1)
    for step in range(5):
        gradients(ours, step)
        gradients(reference, step)
        update(optimizer, config)
        plain.step()
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_adamw_decays_matrices_but_neither_gains_nor_position_biases() -> None:
    config = some(TrainConfig, optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    model, before = Small(), Small()
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    update(optimizer, config)
    torch.testing.assert_close(model.linear.weight, before.linear.weight * (1 - 0.1 * 0.5))
    assert torch.equal(model.norm, before.norm)
    assert torch.equal(model.encoder_bias.weight, before.encoder_bias.weight)


@pytest.mark.parametrize(("schedule", "halfway"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_schedules_run_over_windows_and_warm_up_over_steps(
    schedule: Literal["constant", "linear", "cosine"], halfway: float
) -> None:
    config = some(TrainConfig, learning_rate=0.4, schedule=schedule, warmup_steps=4, max_windows=1000)
    assert [learning_rate(config, step, 0) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert learning_rate(config, 100, 500) == pytest.approx(0.4 * halfway)
    assert learning_rate(config, 200, 1000) == pytest.approx(0.4 if schedule == "constant" else 0.0)
    if schedule == "cosine":
        assert learning_rate(config, 100, 250) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))


def test_the_rate_of_the_step_is_the_rate_applied() -> None:
    config = some(
        TrainConfig, optimizer="adamw", learning_rate=0.4, weight_decay=0.0, schedule="linear", max_windows=100
    )
    model, before = Small(), Small()
    optimizer = build_optimizer(model, config)
    gradients(model, 0)
    set_rate(optimizer, learning_rate(config, 0, 75))
    update(optimizer, config)  # Adam's first step has the size of the rate
    moved = (model.linear.weight - before.linear.weight).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-4, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_clipping_bounds_the_norm_over_all_parameters() -> None:
    config = some(TrainConfig, optimizer="adam", learning_rate=1.0, weight_decay=0.0, clip_norm=0.5)
    model = Small()
    optimizer = build_optimizer(model, config)
    gradients(model, 0)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    expected = {name: p.grad * (0.5 / norm) for name, p in model.named_parameters() if p.grad is not None}
    update(optimizer, config)
    for name, parameter in model.named_parameters():  # Adam's first moment after one step is a tenth of the gradient
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], expected[name] * 0.1)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_average_forgets_the_first_weights_and_then_decays_slowly(
    on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a GPU it is computed another way.
    monkeypatch.setattr("pipeline.training.optimizer.can_record", lambda _: on_gpu)
    model = Small()
    average = Average(cast(Backbone, model), 0.95)  # which asks no more of it than of any module
    slow = {name: p.detach().double() for name, p in model.named_parameters()}
    for step in range(300):
        gradients(model, step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(gradient_of(parameter))
        average.set_weight(step)
        average.update(model)
        decay = min(0.95, (1 + step) / (10 + step))
        slow = {name: decay * slow[name] + (1 - decay) * p.detach().double() for name, p in model.named_parameters()}
    for name, parameter in average.model.named_parameters():
        torch.testing.assert_close(parameter.double(), slow[name], rtol=1e-4, atol=1e-4)
        assert not parameter.requires_grad


def test_bfloat16_is_used_where_asked_and_weights_stay_float32() -> None:
    model, x = Small(), torch.ones(2, 3)
    with autocast(some(TrainConfig, precision="bfloat16"), torch.device("cpu")):
        assert model.linear(x).dtype == torch.bfloat16
    for precision in ("auto", "float32"):
        with autocast(some(TrainConfig, precision=precision), torch.device("cpu")):
            assert model.linear(x).dtype == torch.float32
    assert model.linear.weight.dtype == torch.float32
