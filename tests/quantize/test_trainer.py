"""The loop: the best check counts, patience ends it, the seed decides everything, divergence is an error."""

from typing import Any

import numpy as np
import pytest
import torch
from settings import some
from torch import nn

from pipeline.errors import UserError
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.trainer import CHECK_EVERY, EncodedBatch, dead_codes, train_quantizer


class Scripted(nn.Module):
    """A model that counts its checks, and whose error at each check is given beforehand."""

    def __init__(self, errors: list[float]) -> None:
        super().__init__()
        self.errors, self.checks = errors, nn.Parameter(torch.zeros(()), requires_grad=False)
        self.weight, self.restarts = nn.Parameter(torch.zeros(())), 0
        self.batches: list[list[float]] = []

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        self.batches.append(rows[:, 0].tolist())
        return (self.weight * rows.sum()).square()

    def encode(self, rows: torch.Tensor) -> EncodedBatch:
        error = self.errors[int(self.checks)]
        self.checks.add_(1)
        return EncodedBatch(torch.zeros(len(rows), 1, dtype=torch.int64), torch.full((len(rows),), error))

    def restart_dead(self, *_: object) -> None:
        self.restarts += 1


def run(errors: list[float], seed: int = 0, **changes: Any) -> Scripted:
    model = Scripted([*errors, *[9.0] * 20])
    train_quantizer(
        model, torch.arange(1.0, 11.0)[:, None], some(QuantizeConfig, batch_items=4, **changes), seed, "test"
    )
    return model


def test_training_ends_after_so_many_checks_without_a_better_error_and_keeps_the_best_weights() -> None:
    model = run([5, 3, 4, 2, 7, 6, 5], patience=3)
    assert len(model.batches) == 7 * CHECK_EVERY
    assert int(model.checks) == 4


def test_a_gain_too_small_to_count_is_kept_but_buys_no_time() -> None:
    model = run([5, 4.999, 4.998, 4.997], patience=3)
    assert len(model.batches) == 4 * CHECK_EVERY
    assert int(model.checks) == 4


def test_no_more_steps_than_allowed() -> None:
    assert len(run([5, 4, 3], max_steps=CHECK_EVERY + 7).batches) == CHECK_EVERY + 7


def test_every_epoch_sees_each_item_once_in_an_order_that_the_seed_decides() -> None:
    batches = run([5], max_steps=6).batches
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = ([item for batch in part for item in batch] for part in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == list(range(1, 11))
    assert batches[:3] != batches[3:]
    assert batches == run([5], max_steps=6).batches
    assert batches != run([5], max_steps=6, seed=1).batches


def test_dead_codes_start_again_unless_it_is_switched_off() -> None:
    assert run([5, 4], max_steps=2 * CHECK_EVERY).restarts == 2
    assert run([5, 4], max_steps=2 * CHECK_EVERY, restart_dead=False).restarts == 0


@pytest.mark.parametrize("error", [np.inf, np.nan])
def test_an_error_that_is_no_number_is_told_with_what_to_lower(error: float) -> None:
    with pytest.raises(UserError, match="not a finite number any more at step 100") as caught:
        run([5, error], learning_rate=0.5)
    assert "set quantize.learning_rate below 0.5" in caught.value.fix


def test_dead_codes_are_those_without_items() -> None:
    assert dead_codes(torch.tensor([4, 0, 4, 2]), 6).tolist() == [1, 3, 5]
