"""The gradient of a looked-up table is that of float64. Runs where there is a GPU, or in Triton's interpreter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="no GPU: Triton is not installed")

from pipeline.ops.lookup import LARGEST, LookupTable
from pipeline.ops.triton.lookup_kernel import sorted_table_gradient, table_gradient

GPU = torch.cuda.is_available()
pytestmark = pytest.mark.gpu(interpreter=True)
DEVICE = "cuda" if GPU else "cpu"


@pytest.mark.parametrize(
    ("tokens", "rows", "width"),
    [(1, 1, 8), (0, 3, 16), (130, 5, 40), (700, 130, 128), (333, 300, 136), *[(174_000, 770, 128)] * GPU],
)
@pytest.mark.parametrize("gradient_of", [table_gradient, sorted_table_gradient])
def test_the_gradient_is_that_of_float64_and_repeats(
    tokens: int, rows: int, width: int, gradient_of: Callable[[Tensor, Tensor, int], Tensor]
) -> None:
    torch.manual_seed(tokens)
    gradient = torch.randn(tokens, width)
    index = torch.randint(rows, (tokens,))
    expected = torch.zeros(rows, width, dtype=torch.float64).index_add_(0, index, gradient.double())
    ours, again = (gradient_of(gradient.to(DEVICE), index.to(DEVICE), rows) for _ in range(2))
    assert torch.equal(ours, again)
    assert (ours.double().cpu() - expected).norm() <= 2e-6 * expected.norm()


@pytest.mark.parametrize(("rows", "dtype"), [(5, torch.float32), (LARGEST + 1, torch.float32), (5, torch.float64)])
def test_a_table_looks_up_and_learns_as_an_embedding_does(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ops.lookup.uses_kernels", lambda _: True)
    torch.manual_seed(0)
    table = LookupTable(rows, 16, dtype=dtype).to(DEVICE)
    other = nn.Embedding(rows, 16, dtype=dtype).to(DEVICE)
    other.load_state_dict(table.state_dict())
    index = torch.randint(rows, (7, 4), device=DEVICE)
    scale = torch.randn(7, 4, 16, device=DEVICE, dtype=dtype)
    for each in (table, other):
        (each(index) * scale).sum().backward()
    assert table.weight.grad is not None
    assert torch.equal(table(index), other(index))
    torch.testing.assert_close(table.weight.grad, other.weight.grad)
