"""Gradient norms by entropy, against one token at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_world import TinyWorld, make_params, write_world

from pipeline.evaluate.entropy_gradients import gradients_by_entropy, quartiles
from pipeline.generator import load_generator
from pipeline.progress import Progress
from pipeline.strategies.base import Network
from pipeline.training.collate import Collator
from pipeline.training.steps import Step
from pipeline.training.windows import Epochs


@pytest.fixture
def world(tmp_path: Path, torch_settings_given_back: None) -> TinyWorld:  # noqa: ARG001 - asked for what it does
    """Inputs to train on, instead of the untrained generator of this folder's other tests."""
    return write_world(tmp_path)


@pytest.fixture
def trained(world: TinyWorld) -> TinyWorld:
    world.train(make_params())
    return world


@pytest.mark.parametrize("settings", [{"strategy": "intrr", "intrr": {"hidden": 16}}, {"backbone": {"name": "hstu"}}])
def test_every_strategy_and_backbone_can_be_asked(world: TinyWorld, settings: dict[str, Any]) -> None:
    world.train(make_params(train={"max_windows": 100}, **settings))
    table = gradients_by_entropy(
        batches=1,
        windows=20,
        splits=world.folder / "splits",
        generator=world.folder / "run" / "generator",
        reports=world.folder / "reports",
    )
    assert (table["gradient_norm"] > 0).all()


def test_each_quartile_is_the_gradient_of_the_mean_loss_of_its_tokens(trained: TinyWorld) -> None:
    loaded = load_generator(trained.folder / "run" / "generator")
    windows = Epochs(trained.splits, "random_start", 42).take(0, 0, 9)
    step = Step(0, 0, windows, np.ones(9, np.float32))
    batch = Collator(np.asarray(trained.splits.items_N), loaded.catalogue.codes_IL)(step, np.arange(9))
    found = {(each.level, each.quartile): each for each in quartiles(loaded.model, Network(), batch)}
    tokens = []
    for level in range(2):
        for row in range(9):
            logits_V = loaded.model(batch.histories, batch.targets_W)[level][row]
            probability_V = logits_V.softmax(0)
            entropy = -float((probability_V * probability_V.log()).sum().detach())
            loaded.model.zero_grad()
            loss = -probability_V[batch.codes_WL[row, level]].log()
            loss.backward()
            slope = torch.cat(
                [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in loaded.model.parameters()]
            )
            tokens.append((entropy, level, float(loss.detach()), slope))
    groups = {"all levels": tokens, "level 1": tokens[:9], "level 2": tokens[9:]}
    for name, members in groups.items():
        ordered = sorted(members, key=lambda token: token[0])
        for number, indices in enumerate(np.array_split(np.arange(len(ordered)), 4), start=1):
            mean = torch.stack([ordered[index][3] for index in indices]).mean(0)
            quarter = found[name, number]
            assert quarter.gradient_norm == pytest.approx(float(mean.norm()), rel=1e-4)
            assert quarter.entropy == pytest.approx(np.mean([ordered[index][0] for index in indices]), abs=1e-5)
            assert quarter.loss == pytest.approx(np.mean([ordered[index][2] for index in indices]), abs=1e-5)
    assert len(found) == 12


def test_the_table_and_the_drawing_are_written(trained: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: dict[str, Any] = {
        "splits": trained.folder / "splits",
        "generator": trained.folder / "run" / "generator",
        "reports": trained.folder / "reports",
    }
    shown: list[Progress] = []
    monkeypatch.setattr(Progress, "update", lambda progress, amount: shown.extend([progress] * amount))
    table = gradients_by_entropy(batches=3, windows=20, **folders)
    assert [progress.total for progress in shown] == [3, 3, 3]
    written = pd.read_csv(trained.folder / "reports" / "gradients.csv")
    pd.testing.assert_frame_equal(written, table, atol=1e-6, rtol=0)
    assert set(table["batches"]) == {3}
    for _, rows in table.groupby("level"):
        assert rows["entropy"].is_monotonic_increasing
    assert b"<svg" in (trained.folder / "reports" / "gradients.svg").read_bytes()
