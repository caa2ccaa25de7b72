"""One kernel's Adam moves parameters, moments and averages as float64 does. Runs where there is a GPU, or in Triton's
interpreter.
"""

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="no GPU: Triton is not installed")

from pipeline.ops import adam

GPU = torch.cuda.is_available()
pytestmark = pytest.mark.gpu(interpreter=True)
DEVICE = "cuda" if GPU else "cpu"


@pytest.mark.parametrize(
    ("kind", "decay"), [(torch.optim.Adam, 0.0), (torch.optim.Adam, 1e-2), (torch.optim.AdamW, 0.1)]
)
@pytest.mark.parametrize("average", [False, True])
def test_a_run_of_updates_is_that_of_float64(
    kind: type[torch.optim.Optimizer], decay: float, average: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adam, "uses_kernels", lambda _: True)
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(size, device=DEVICE)) for size in (1, 300, 1024, 2500)]
    unused = nn.Parameter(torch.randn(3, device=DEVICE))
    exact = [nn.Parameter(parameter.detach().double()) for parameter in ours]
    averages = [parameter.detach().clone() for parameter in ours]
    exact_averages = [parameter.detach().clone() for parameter in exact]
    before = unused.detach().clone()
    groups = [{"params": [*ours[:2], unused], "weight_decay": decay}, {"params": ours[2:], "weight_decay": 0.0}]
    rate = torch.tensor(1e-2, device=DEVICE)
    optimizer = kind(groups, lr=rate)  # type: ignore[call-arg]  # each optimizer has its own arguments
    reference = kind(
        [{"params": exact[:2], "weight_decay": decay}, {"params": exact[2:], "weight_decay": 0.0}],
        lr=1e-2,  # type: ignore[call-arg]
    )
    one = adam.adam_in_one_kernel(optimizer)
    assert one is not None
    for step in range(6):
        for parameter, other in zip(ours, exact, strict=True):
            gradient = torch.randn(len(parameter), device=DEVICE)
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.copy_(gradient)
            other.grad = gradient.double()
        if step == 3:  # a checkpoint replaces the state's tensors
            optimizer.load_state_dict(optimizer.state_dict())
        if average:
            one.update(list(zip(ours, averages, strict=True)), torch.tensor(0.1, device=DEVICE))
        else:
            one.update()
        reference.step()
        for mean, target in zip(exact_averages, exact, strict=True):
            mean.lerp_(target.detach(), 0.1 if average else 0.0)
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in ours)
    for found, expected in zip([*ours, *averages], [*exact, *exact_averages], strict=True):
        torch.testing.assert_close(found.detach().double(), expected.detach(), atol=2e-6, rtol=2e-6)
    for parameter, other in zip(ours, exact, strict=True):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            found, expected = optimizer.state[parameter][name], reference.state[other][name]
            torch.testing.assert_close(found.double().cpu(), expected.double().cpu(), atol=1e-6, rtol=1e-5)
    assert torch.equal(unused.detach(), before)
    assert unused not in optimizer.state


@pytest.mark.parametrize("loaded", [False, True])
def test_parameters_of_unequal_steps_are_refused(loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "uses_kernels", lambda _: True)
    early, late = (nn.Parameter(torch.ones(3, device=DEVICE)) for _ in range(2))
    optimizer = torch.optim.Adam([early, late], lr=torch.tensor(1e-2, device=DEVICE))
    one = adam.adam_in_one_kernel(optimizer)
    assert one is not None
    early.grad = torch.ones_like(early)
    if loaded:  # the state of a run in which one parameter had its first gradient two updates later
        late.grad = torch.ones_like(late)
        one.update()
        state = optimizer.state_dict()
        state["state"][1] = {name: value.clone() for name, value in state["state"][1].items()}
        state["state"][0]["step"] += 2
        optimizer.load_state_dict(state)
    else:
        one.update()
        one.update()
        late.grad = torch.ones_like(late)
    before = late.detach().clone()
    with pytest.raises(ValueError, match=r"one step, and theirs are . to .: a parameter has a gradient in every"):
        one.update()
    assert torch.equal(late.detach(), before)


def test_other_optimizers_and_other_types_update_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "uses_kernels", lambda _: True)
    single, double = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    assert adam.adam_in_one_kernel(torch.optim.SGD([single], 0.1)) is None
    assert adam.adam_in_one_kernel(torch.optim.Adam([single, double], 0.1)) is None
    monkeypatch.setattr(adam, "uses_kernels", lambda _: False)
    assert adam.adam_in_one_kernel(torch.optim.Adam([single], 0.1)) is None
