"""Work recorded as a CUDA graph gives what it gives without. The recording itself needs a GPU."""

import gc
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.cuda_graphs import WARM, CudaGraphed, map_tensors, tensors_of

gpu = pytest.mark.gpu


@dataclass(frozen=True)
class Inner:
    rows: Tensor
    name: str


@dataclass(frozen=True)
class Outer:
    x: Tensor
    inner: Inner
    absent: Tensor | None = None


def outer(size: int, device: str = "cpu") -> Outer:
    return Outer(torch.randn(size, device=device), Inner(torch.randperm(size, device=device), "a name"))


def test_the_tensors_of_a_dataclass_are_those_of_the_dataclasses_in_it_too() -> None:
    value = outer(5)
    assert [id(tensor) for tensor in tensors_of(value)] == [id(value.x), id(value.inner.rows)]
    assert tensors_of(None) == []


def test_mapping_tensors_leaves_everything_else_as_it_is() -> None:
    value = outer(5)
    changed = map_tensors(value, lambda tensor: tensor + 1)
    assert torch.equal(changed.x, value.x + 1)
    assert torch.equal(changed.inner.rows, value.inner.rows + 1)
    assert (changed.inner.name, changed.absent) == ("a name", None)


@gpu
def test_replays_give_what_the_function_gives_for_every_shape() -> None:
    recorded, calls = None, []

    def function(value: Outer) -> Tensor:
        calls.append(len(value.x))
        return value.x[value.inner.rows] * 3

    recorded = CudaGraphed(function)
    for size in (7, 11, 7, 11) * (WARM + 2):
        value = outer(size, "cuda")
        assert torch.equal(recorded(value), value.x[value.inner.rows] * 3)
    assert calls.count(7) == calls.count(11) == WARM + 1  # the last one is the recording


@gpu
def test_random_numbers_follow_the_seed_as_without_recording() -> None:
    recorded: CudaGraphed[Outer, torch.Tensor] = CudaGraphed(lambda value: value.x * torch.rand_like(value.x))
    value, drawn = outer(64, "cuda"), []
    for seed in (1, 1, 1, 2, 1):
        torch.manual_seed(seed)
        drawn.append(recorded(value).clone())
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[2], drawn[4])
    assert not torch.equal(drawn[2], drawn[3])


@gpu
def test_gradients_add_up_over_replays() -> None:
    weight = torch.randn(5, device="cuda", requires_grad=True)
    recorded: CudaGraphed[Outer, None] = CudaGraphed(lambda value: (value.x * weight).sum().backward())
    expected = torch.zeros_like(weight)
    for _ in range(2 * WARM + 2):
        value = outer(5, "cuda")
        recorded(value)
        expected += value.x
    torch.testing.assert_close(weight.grad, expected)


@gpu
def test_an_older_recording_that_only_garbage_holds_does_not_break_a_new_one() -> None:
    x = torch.randn(5, device="cuda")
    older: CudaGraphed[Any, torch.Tensor] = CudaGraphed(lambda _: x.exp())
    cycle: list[Any] = [older]
    cycle.append(cycle)
    for _ in range(WARM + 1):
        older(None)
    del older, cycle

    def collecting(_: None) -> Tensor:
        gc.collect()  # as Python may at any time
        return x * 2

    recorded = CudaGraphed(collecting)
    for _ in range(WARM + 1):
        assert torch.equal(recorded(None), x * 2)
