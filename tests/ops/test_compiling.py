"""`compile_kernels_of`: what would be launched is compiled once per variant, and nothing runs meanwhile."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.ops import compiling
from pipeline.ops.compiling import compile_kernels_of, launch

CPU = torch.device("cpu")


class Kernel:
    """Stands for a Triton function: it notes its launches and compilations."""

    def __init__(self, *do_not_specialize: bool):
        self.params = [SimpleNamespace(do_not_specialize=flag) for flag in do_not_specialize]
        self.launched: list[tuple[Any, ...]] = []
        self.compiled: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self.launched.append((grid, arguments, options))

    def warmup(self, *arguments: Any, grid: tuple[int, ...], **options: Any) -> None:
        assert grid
        self.compiled.append((arguments, options))


@pytest.fixture
def kernels_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "uses_kernels", lambda _: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())


def test_outside_a_kernel_is_launched() -> None:
    kernel = Kernel(False, True)
    x = torch.randn(8)
    launch(kernel, (3, 2), x, 7, written=[x], WIDE=True)
    assert kernel.launched == [((3, 2), (x, 7), {"WIDE": True})]


@pytest.mark.usefixtures("kernels_here")
def test_one_compilation_serves_all_launches_of_a_variant() -> None:
    kernel = Kernel(False, True, False)
    wide, narrow = torch.randn(4096), torch.randn(4096, dtype=torch.bfloat16)
    out = torch.full((5,), 3, dtype=torch.int64)

    def function() -> None:
        for rows in (5, 16, 1):  # not specialised
            launch(kernel, (1,), wide, rows, 32, written=[out], BLOCK=64)
        launch(kernel, (1,), wide, 5, 33, written=[], BLOCK=64)  # no multiple of 16
        launch(kernel, (1,), wide, 5, 64, written=[], BLOCK=32)  # another constant
        launch(kernel, (1,), narrow, 5, 32, written=[], BLOCK=64)  # another type
        launch(kernel, (1,), wide[1:], 5, 32, written=[], BLOCK=64)  # an address that is no multiple of 16 bytes
        launch(kernel, (1,), (wide, narrow), 5, 32, written=[], BLOCK=64)
        launch(kernel, (1,), (wide, wide), 5, 32, written=[], BLOCK=64)

    compile_kernels_of(CPU, function)
    assert not kernel.launched
    assert len(kernel.compiled) == 7
    assert torch.equal(out, torch.zeros_like(out))  # where what follows may read indices
    # What is compiled has the types and the alignment of what was to be launched, and holds no large tensor.
    for (first, *_), _ in kernel.compiled:
        for tensor in first if isinstance(first, tuple) else (first,):
            assert len(tensor) in (16, 4095)
    assert sorted(str(first.dtype) for (first, *_), _ in kernel.compiled if isinstance(first, torch.Tensor)) == [
        "torch.bfloat16",
        *["torch.float32"] * 4,
    ]
    launch(kernel, (1,), wide, 5, 32, written=[out], BLOCK=64)
    assert len(kernel.launched) == 1  # afterwards all is as before


@pytest.mark.usefixtures("kernels_here")
def test_an_error_ends_the_collecting() -> None:
    kernel = Kernel(False)
    with pytest.raises(ZeroDivisionError):
        compile_kernels_of(CPU, lambda: 1 // 0)
    launch(kernel, (1,), torch.randn(3), written=[])
    assert kernel.launched
    assert not kernel.compiled


def test_without_kernels_nothing_runs() -> None:
    compile_kernels_of(CPU, lambda: 1 // 0)
