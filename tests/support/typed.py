"""Values and functions with narrower types than those that they are made from."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")
T = TypeVar("T")


def present(value: T | None) -> T:
    """A value that a test knows to be there."""
    assert value is not None
    return value


def gradient_of(tensor: Tensor) -> Tensor:
    """The gradient that a backward pass left in `tensor`."""
    return present(tensor.grad)


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor, from the first to the last. The built-in `sum` begins with an int."""
    return functools.reduce(torch.add, terms)


def recording(function: Callable[..., R], calls: list[R]) -> Callable[..., R]:
    """The same function; what each call returns is appended to `calls`."""

    def call(*args: Any, **kwargs: Any) -> R:
        calls.append(function(*args, **kwargs))
        return calls[-1]

    return call
