"""Assignment, the codebook loss and both gradients past a choice, against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typed import gradient_of

from pipeline.quantize.codebook import codebook_loss, nearest_codes, rotation, straight_through


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 1000))
@settings(max_examples=30)
def test_the_nearest_code_is_that_of_all_distances(seed: int) -> None:
    items, codes = rows(20, 4, seed=seed), rows(9, 4, seed=seed + 1)
    assert nearest_codes(items, codes).tolist() == ((items[:, None] - codes) ** 2).sum(-1).argmin(1).tolist()


def test_of_equally_near_codes_the_first_is_taken() -> None:
    assert nearest_codes(torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 0], [1, 1], [1, -1], [1, 1]])).tolist() == [1]


def test_the_loss_pulls_codes_to_rows_and_a_quarter_as_hard_rows_to_codes() -> None:
    items, chosen = rows(5, 3).requires_grad_(), rows(5, 3, seed=1).requires_grad_()
    loss = codebook_loss(items, chosen, 0.25)
    assert loss.item() == pytest.approx(1.25 * float(((items - chosen).detach() ** 2).mean()))
    loss.backward()
    torch.testing.assert_close(chosen.grad, 2 * (chosen - items).detach() / 15)
    torch.testing.assert_close(items.grad, 0.25 * 2 * (items - chosen).detach() / 15)


def test_straight_through_gives_the_code_and_passes_the_gradient_unchanged() -> None:
    items, chosen, gradient = rows(4, 3).requires_grad_(), rows(4, 3, seed=1), rows(4, 3, seed=2)
    passed = straight_through(items, chosen)
    torch.testing.assert_close(passed.detach(), chosen)
    passed.backward(gradient)
    torch.testing.assert_close(items.grad, gradient)


def test_the_rotation_trick_gives_the_code_and_turns_and_scales_the_gradient() -> None:
    items, chosen, gradient = rows(4, 3).requires_grad_(), rows(4, 3, seed=1), rows(4, 3, seed=2)
    passed = rotation(items, chosen)
    torch.testing.assert_close(passed.detach(), chosen)
    passed.backward(gradient)
    for item, code, into, out in zip(
        items.detach().numpy(), chosen.numpy(), gradient.numpy(), gradient_of(items).numpy(), strict=True
    ):
        e, q = item / np.linalg.norm(item), code / np.linalg.norm(code)
        r = (e + q) / np.linalg.norm(e + q)
        turn = np.eye(3) - 2 * np.outer(r, r) + 2 * np.outer(q, e)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(out, np.linalg.norm(code) / np.linalg.norm(item) * turn.T @ into, atol=1e-12)
