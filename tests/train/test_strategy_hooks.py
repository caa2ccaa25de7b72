"""What the trainer promises a strategy: when it is asked, what its answers do, and that its state survives."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_world import TinyWorld, make_params, stop_at
from torch import Tensor

from pipeline.packing.batch import Batch
from pipeline.strategies.base import Sampler, Weigh


class Recorder(Sampler):
    """Records each call; weighs windows by the parity of their target's position."""

    def __init__(self, even: float, odd: float) -> None:
        self.weights = (even, odd)
        self.calls: list[Any] = []

    def begin_epoch(self, epoch: int) -> Weigh | None:
        self.calls.append(epoch)
        return lambda _, ends_W: np.where(ends_W % 2 == 0, *self.weights).astype(np.float32)

    def loss(self, logits: list[Tensor], penalty: Tensor | float, batch: Batch) -> Tensor:
        if torch.is_grad_enabled():  # not in validation
            self.calls.append(batch)
        return super().loss(logits, penalty, batch)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": len(self.calls)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = [None] * state["calls"]


def train_with(
    sampler: Sampler, world: TinyWorld, monkeypatch: pytest.MonkeyPatch, name: str = "run", **train: Any
) -> pd.DataFrame:
    monkeypatch.setattr("pipeline.strategies.registry.ChosenStrategies.sampler", lambda *_: sampler)
    world.train(make_params(backbone={"dropout": 0.0}, train={"windows": "prefixes", **train}), name)
    return pd.read_csv(world.folder / name / "reports" / "history.csv")


def test_an_epoch_is_weighed_before_its_first_step_and_after_the_last_of_the_epoch_before(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = Recorder(1, 1)
    train_with(strategy, world, monkeypatch)
    epochs = [call for call in strategy.calls if isinstance(call, int)]
    assert epochs == list(range(len(epochs)))
    assert len(epochs) >= 3
    steps = [strategy.calls.index(i + 1) - strategy.calls.index(i) - 1 for i in epochs[:-1]]
    assert len(set(steps)) == 1
    assert steps[0] > 2


def test_windows_of_weight_zero_are_neither_computed_nor_counted(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = Recorder(0, 1)
    history = train_with(strategy, world, monkeypatch)
    batches = [call for call in strategy.calls if isinstance(call, Batch)]
    assert sum(len(batch.targets_W) for batch in batches) == history["windows"].iloc[-1]
    splits = world.splits
    odd = {
        int(splits.items_N[end])
        for first, last in zip(splits.offsets, splits.train_end, strict=False)
        for end in range(first + 1, last)
        if end % 2
    }
    assert {int(item) for batch in batches for item in batch.targets_W} <= odd


def test_weights_multiply_the_loss_of_their_windows(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {"validate_every": 1, "max_windows": 1}
    plain = train_with(Recorder(1, 1), world, monkeypatch, "plain", **train)["train_loss"][0]
    double = train_with(Recorder(2, 2), world, monkeypatch, "double", **train)["train_loss"][0]
    even = train_with(Recorder(2, 1), world, monkeypatch, "even", **train)["train_loss"][0]
    odd = train_with(Recorder(1, 2), world, monkeypatch, "odd", **train)["train_loss"][0]
    assert double == pytest.approx(2 * plain, abs=1e-5)
    assert even + odd == pytest.approx(3 * plain, abs=1e-5)


def test_the_state_of_a_strategy_survives_a_stop(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Recorder(1, 1), Recorder(1, 1)

    with monkeypatch.context() as patch:
        stop_at(9, patch)
        with pytest.raises(KeyboardInterrupt):
            train_with(first, world, patch)
    train_with(second, world, monkeypatch)
    assert len([call for call in second.calls if call is None]) == 8  # epoch 0 and the seven steps of the checkpoint
    assert second.calls[8] == 0  # resumed within epoch 0, which is weighed again
