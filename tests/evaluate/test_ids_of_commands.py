"""The commands gradients and sids take the same users and histories as recommend."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from evaluated_world import MAX_HISTORY, World

from pipeline.cli import serve
from pipeline.errors import UserError
from pipeline.evaluate.entropy_gradients import QUARTILES, gradients_of_history
from pipeline.generator import load_generator
from pipeline.packing.histories import Histories


def measure(world: World, folder: Path, **of: Any) -> pd.DataFrame:
    settings: dict[str, Any] = {**world.paths, **of}
    return gradients_of_history(interactions=world.root / "data/interactions", output=folder, **settings)


def sequence_of(world: World, user: int) -> list[int]:
    first, end = world.splits.offsets[user : user + 2]
    recent: list[int] = world.splits.items_N[first:end].tolist()[-MAX_HISTORY:]
    return recent


def test_gradients_are_measured_on_every_target_of_a_history(world: World, tmp_path: Path) -> None:
    user = next(user for user in range(world.splits.users) if len(sequence_of(world, user)) > QUARTILES)
    items = sequence_of(world, user)
    table = measure(world, tmp_path, user=f"user-{user}")
    typed = measure(world, tmp_path, history=[f"item-{item}" for item in items])
    pd.testing.assert_frame_equal(table, typed)

    # The mean loss, one target at a time.
    model = load_generator(world.paths["generator"]).model
    losses = []
    for end in range(1, len(items)):
        before = Histories.pack(np.array(items[:end]), np.array([0, end]))
        logits = model(before, torch.tensor([items[end]]))
        codes = model.catalogue.codes_IL[items[end]]
        losses.append(
            [
                float(-logits[level][0].detach().log_softmax(0)[codes[level]])
                for level in range(model.catalogue.bucket_levels)
            ]
        )
    for level in range(model.catalogue.bucket_levels):
        rows = table[table["level"] == f"level {level + 1}"].sort_values("quartile")
        sizes = [len(part) for part in np.array_split(np.arange(len(losses)), QUARTILES)]
        mean = np.average(rows["loss"], weights=sizes)
        assert mean == pytest.approx(np.mean([loss[level] for loss in losses]), rel=1e-4)


def test_gradients_need_a_target_for_each_quartile(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the history has 4 items"):
        measure(world, tmp_path, history=["item-1", "item-2", "item-3", "item-4"])


def test_sids_of_a_history_are_those_of_its_items(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.root)
    model = world.paths["generator"]
    serve.sids(user="user-3", titles=0, model=model, as_json=True)
    of_user = json.loads(capsys.readouterr().out)
    items = [f"item-{item}" for item in sequence_of(world, 3)]
    assert [sid["item"] for sid in of_user] == items
    serve.sids(history=items[:2], titles=0, model=model, as_json=True)
    assert json.loads(capsys.readouterr().out) == of_user[:2]
    with pytest.raises(UserError, match="one of --item, --user and --history"):
        serve.sids(item="item-1", user="user-3")
