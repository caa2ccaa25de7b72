"""The kernels of a feed-forward that trains give what a slow float64 one gives. Runs where there is a GPU, or in
Triton's interpreter (TRITON_INTERPRET=1), where matrix products round as the CPU's do.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.ops.dropout import Dropout, ReluDropout
from pipeline.ops.linear import RMSNorm, feed_forward

pytest.importorskip("triton", reason="no GPU: Triton is not installed")
from pipeline.ops.triton.feed_forward import _forward_op, relu_layers

GPU = torch.cuda.is_available()
pytestmark = pytest.mark.gpu(interpreter=True)
DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
BOUND = 1.2e-2 if GPU else 1e-5


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.detach().double().cpu() - expected.detach()).norm() / expected.detach().norm())


def random_layers(rows: int, widths: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    """Random inputs [rows, first width] and the weights from each width to the next."""
    x = torch.randn(rows, widths[0], device=DEVICE).to(DTYPE).requires_grad_()
    sizes = zip(widths[1:], widths[:-1], strict=True)
    return x, [(torch.randn(n, k, device=DEVICE) * k**-0.5).to(DTYPE).requires_grad_() for n, k in sizes]


@pytest.mark.parametrize(
    ("rows", "widths"),
    [(1, (16, 40, 16)), (300, (128, 264, 128)), (129, (24, 72, 40, 24))] + [(17_000, (128, 1024, 1024, 128))] * GPU,
)
@pytest.mark.parametrize("dropout", [0.0, 0.15, 0.6])
def test_outputs_and_gradients_are_those_of_float64(rows: int, widths: tuple[int, ...], dropout: float) -> None:
    torch.manual_seed(rows)
    x, weights = random_layers(rows, widths)
    seeds = torch.randint(2**31 - 1, (len(weights) - 1,), device=DEVICE, dtype=torch.int32)
    out, hidden = _forward_op(x, weights, seeds, dropout)
    grad = torch.randn_like(out)
    ours = [out, *hidden, *torch.autograd.grad(out, [x, *weights], grad)]
    # Who is dropped is read off the outputs: 0 where the input was positive. How many are, another test asks.
    exact, exact_weights = (
        x.detach().double().cpu().requires_grad_(),
        [weight.detach().double().cpu().requires_grad_() for weight in weights],
    )
    expected_hidden, y = list[Tensor](), exact
    for weight, output in zip(exact_weights, hidden, strict=False):
        stays = (output.detach().cpu() > 0) if dropout else torch.ones(output.shape)
        y = (y @ weight.T).relu() * stays / (1 - dropout)
        expected_hidden.append(y)
        # The next layer gets what our kernel gave: rounded otherwise, its ReLU would open for other inputs near 0.
        y = y + (output.detach().double().cpu() - y).detach()
    expected = y @ exact_weights[-1].T
    gradients = torch.autograd.grad(expected, [exact, *exact_weights], grad.double().cpu())
    for our, other in zip(ours, [expected, *expected_hidden, *gradients], strict=True):
        assert relative(our, other) <= BOUND


def test_dropout_has_its_rate_and_another_seed_another_mask() -> None:
    torch.manual_seed(0)
    x, weights = random_layers(600 if GPU else 200, (64, 512, 64))
    before = (x @ weights[0].T) > 0

    def stays(seed: int) -> Tensor:
        hidden = _forward_op(x, weights, torch.tensor([seed], device=DEVICE, dtype=torch.int32), 0.3)[1][0]
        assert (hidden > 0)[~before].float().mean() <= 1e-3  # not 0: two products round apart
        passed: Tensor = (hidden > 0)[before]
        return passed.float()

    first, again, other = stays(5), stays(5), stays(6)
    assert torch.equal(first, again)
    assert first.mean().item() == pytest.approx(0.7, abs=0.01)
    assert (first * other).mean().item() == pytest.approx(0.49, abs=0.015)
    assert (first[1:] * first[:-1]).mean().item() == pytest.approx(0.49, abs=0.015)


def test_torchs_generator_repeats_it_and_layers_draw_apart() -> None:
    x, weights = random_layers(200, (64, 64, 64, 64))
    with torch.no_grad():
        weights[1].copy_(torch.eye(64))  # so that the second layer only drops what the first let through
    torch.manual_seed(1)
    first = relu_layers(x, weights, 0.5)
    torch.manual_seed(1)
    assert torch.equal(first, relu_layers(x, weights, 0.5))
    one, two = _forward_op(x, weights, torch.tensor([3, 4], device=DEVICE, dtype=torch.int32), 0.5)[1]
    assert (two[one > 0] > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.gpu(interpreter=False)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_module_trains_alike_with_and_without_the_kernels(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    norm, relu, then = RMSNorm(64).cuda(), ReluDropout(0.0), Dropout(0.0)
    layers = [nn.Linear(k, n, bias=False).cuda() for k, n in ((64, 256), (256, 256), (256, 64))]
    h = torch.randn(1000, 64, device="cuda", requires_grad=True)
    grad = torch.randn(1000, 64, device="cuda")
    wanted = [h, norm.weight, *(layer.weight for layer in layers)]

    def run(forward: Callable[[], Tensor]) -> list[Tensor]:
        out = forward()
        return [out, *torch.autograd.grad(out, wanted, grad)]

    def forward() -> Tensor:
        return feed_forward(layers, h, relu, then, norm=norm)

    with torch.autocast("cuda", torch.bfloat16):
        ours = run(torch.compile(forward) if compiled else forward)
        monkeypatch.setattr("pipeline.ops.linear._fuses", lambda *_: False)
        expected = run(forward)
    for our, other in zip(ours, expected, strict=True):
        assert our.dtype == other.dtype
        assert relative(our, other.double().cpu()) <= BOUND
