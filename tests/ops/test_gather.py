"""Rows that are taken once: values and gradients are those of plain indexing."""

import torch

from pipeline.ops.gather import gather_unique


def test_values_and_gradient_are_those_of_indexing() -> None:
    torch.manual_seed(0)
    x_Td = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    source_O = torch.randperm(50)[:20]
    slot_T = torch.full((50,), -1).scatter_(0, source_O, torch.arange(20))
    grad_Od = torch.randn(20, 3, dtype=torch.float64)
    found, expected = gather_unique(x_Td, source_O, slot_T), x_Td[source_O]
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(out, x_Td, grad_Od)[0] for out in (found, expected)))


def test_a_row_that_several_slots_hold_has_the_gradient_of_the_one_that_took_it() -> None:
    x_Td = torch.randn(3, 2, requires_grad=True)
    out_Od = gather_unique(x_Td, torch.tensor([2, 0, 0, 0]), torch.tensor([1, -1, 0]))
    assert torch.equal(out_Od, x_Td[[2, 0, 0, 0]])
    grad_Od = torch.randn(4, 2)
    (grad_Td,) = torch.autograd.grad(out_Od, x_Td, grad_Od)
    assert torch.equal(grad_Td, torch.stack([grad_Od[1], torch.zeros(2), grad_Od[0]]))
