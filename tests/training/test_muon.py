"""Muon against a slow float64 one, and against AdamW where it leaves parameters to that."""

import copy
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from networks import MakeModel
from settings import some
from torch import Tensor, nn
from typed import gradient_of

from pipeline.training.config import TrainConfig
from pipeline.training.muon import COEFFICIENTS, Muon, newton_schulz
from pipeline.training.optimizer import build_optimizer, set_rate, update

SHAPES = ((12, 12), (12, 12), (40, 12), (12, 40), (5, 64))

GAIN = [{"params": [nn.Parameter(torch.ones(3))]}]  # AdamW's, without a gradient


class Network(nn.Module):
    """Matrices of layers in lists of blocks, beside a table, a gain, a map of inputs and heads."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 12)
        self.content = nn.Linear(7, 12, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(columns, rows, bias=bool(i % 2))) for i, (rows, columns) in enumerate(SHAPES)
        )
        self.norm = nn.Parameter(torch.rand(12))
        self.heads = nn.ModuleList(nn.Linear(12, 9, bias=False) for _ in range(2))

    def matrices(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if name.startswith("blocks") and p.ndim == 2]


def networks(count: int) -> list[Network]:
    """Equal networks of random weights."""
    torch.manual_seed(0)
    return [copy.deepcopy(network) for network in [Network()] * count]


def draw_gradients(network: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)


def config(optimizer: Literal["adamw", "muon"]) -> TrainConfig:
    return some(TrainConfig, optimizer=optimizer, learning_rate=0.02, weight_decay=0.3)


def slow_muon(weights: list[np.ndarray], gradients: Callable[[int], list[np.ndarray]], rates: list[float]) -> None:
    """One matrix after another in float64, by the formulas of the two papers, with weight decay 0.3."""
    a, b, c = COEFFICIENTS
    momenta = [np.zeros_like(weight) for weight in weights]
    for step, rate in enumerate(rates):
        for weight, momentum, gradient in zip(weights, momenta, gradients(step), strict=True):
            momentum *= 0.95
            momentum += 0.05 * gradient
            x = 0.05 * gradient + 0.95 * momentum
            x /= np.sqrt((x**2).sum())
            for _ in range(5):
                x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
            weight -= rate * 0.3 * weight + rate * 0.2 * np.sqrt(max(x.shape)) * x


def test_matrices_of_layers_move_as_in_a_slow_float64_muon() -> None:
    ours, slow = networks(2)
    optimizer = build_optimizer(ours, config("muon"))
    rates = [0.02, 0.05, 0.01, 0.04]
    for step, rate in enumerate(rates):
        set_rate(optimizer, rate)
        draw_gradients(ours, step)
        update(optimizer, config("muon"))

    def gradients(step: int) -> list[np.ndarray]:
        draw_gradients(slow, step)
        return [gradient_of(matrix).double().numpy() for matrix in slow.matrices()]

    expected = [matrix.detach().double().numpy() for matrix in slow.matrices()]
    slow_muon(expected, gradients, rates)
    for matrix, reference in zip(ours.matrices(), expected, strict=True):
        np.testing.assert_allclose(matrix.detach(), reference, rtol=2e-5, atol=2e-5)


def test_all_other_parameters_are_adamws() -> None:
    ours, reference = networks(2)
    optimizers = build_optimizer(ours, config("muon")), build_optimizer(reference, config("adamw"))
    for step in range(4):
        for network, optimizer in zip((ours, reference), optimizers, strict=True):
            draw_gradients(network, step)
            optimizer.step()
    moved = {id(matrix) for matrix in ours.matrices()}
    for (name, p), other in zip(ours.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, other) == (id(p) not in moved), name


def test_the_step_of_a_matrix_has_the_size_of_adamws() -> None:
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.zeros(64, 256))
    optimizer = Muon([matrix], GAIN, 0.1, 0.0, False)
    matrix.grad = torch.randn(64, 256)
    optimizer.step()
    assert matrix.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.1, rel=0.2)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_singular_values_come_near_one(size: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 24, 60) * size
    values = torch.linalg.svdvals(newton_schulz(x))
    if size > 1e-6:  # below, `TINY` holds them down
        assert values.min() > 0.6
    assert values.max() < 1.3


def test_zero_gradients_move_nothing_and_absent_ones_are_left_alone() -> None:
    matrix, other = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6, 4))
    before = matrix.detach().clone(), other.detach().clone()
    optimizer = Muon([matrix, other], GAIN, 0.1, 0.0, False)
    matrix.grad = torch.zeros(6, 4)
    optimizer.step()
    assert torch.equal(matrix, before[0])
    assert torch.equal(other, before[1])
    assert other not in optimizer.state


def test_a_saved_state_goes_on_with_the_same_bits() -> None:
    ours, resumed = networks(2)
    first = build_optimizer(ours, config("muon"))
    for step in range(3):
        draw_gradients(ours, step)
        first.step()
    second = build_optimizer(resumed, config("muon"))
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(3, 6):
        for network, optimizer in ((ours, first), (resumed, second)):
            draw_gradients(network, step)
            optimizer.step()
    for a, b in zip(ours.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_tables_heads_gains_and_biases_of_the_networks_are_not_muons(make_model: MakeModel) -> None:
    model = make_model()
    optimizer = build_optimizer(model, config("muon"))
    muons = {id(p) for p in optimizer.param_groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in muons}
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(names) == len(layers) - model.levels
    assert all(name.split(".")[0] in ("encoder", "decoder") for name in names), names
    everything = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())


@pytest.mark.gpu
def test_a_gpu_moves_matrices_alike_also_when_recorded() -> None:
    from pipeline.cuda_graphs import CudaGraphed

    cpu, gpu = networks(2)
    gpu = gpu.cuda()
    optimizers = build_optimizer(cpu, config("muon")), build_optimizer(gpu, config("muon"))
    for network in (cpu, gpu):
        draw_gradients(network, 0)

    def step(_: None) -> Tensor:
        optimizers[1].step()
        return gpu.norm

    recorded = CudaGraphed(step)
    before = [matrix.detach().clone() for matrix in cpu.matrices()]
    for i in range(6):
        for network in (cpu, gpu):
            generator = torch.Generator().manual_seed(i)
            for parameter in network.parameters():
                gradient_of(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        set_rate(optimizers[1], 0.02 + 0.01 * i)
        set_rate(optimizers[0], 0.02 + 0.01 * i)
        optimizers[0].step()
        recorded(None)
    for a, b, old in zip(cpu.matrices(), gpu.matrices(), before, strict=True):
        assert (a - b.cpu()).norm() <= 0.03 * (a - old).norm()  # bfloat16
    for a, b in zip(cpu.parameters(), gpu.parameters(), strict=True):
        if a.ndim == 1:
            torch.testing.assert_close(a, b.cpu(), rtol=1e-4, atol=1e-5)
