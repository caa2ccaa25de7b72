"""Two processes under torchrun learn what one does from the same global batch."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_world import TinyWorld, make_params, train_by_torchrun


@pytest.mark.slow
@pytest.mark.parametrize(("dropout", "strategy"), [(0.0, "full"), (0.2, "full"), (0.0, "rastp"), (0.0, "intrr")])
def test_two_processes_equal_one_at_the_same_global_batch(
    world: TinyWorld, root: Path, dropout: float, strategy: str
) -> None:
    """With dropout the single process computes the same two parts, which draw the same dropout."""
    train = {"max_windows": 400, "ema": 0.9, "clip_norm": 0.5, "optimizer": "adam"}
    backbone = {"dropout": dropout}
    chosen = {"strategy": strategy, "backbone": backbone, "rastp": {"after_layer": 1}}
    said = train_by_torchrun(world, root, train=train, **chosen)
    world.train(make_params(train={**train, "accumulate": 2 if dropout else 1}, **chosen), "one")
    assert said.count("windows per epoch") == 1  # only the first process prints and writes
    one, two = (pd.read_csv(folder / "reports" / "history.csv") for folder in (world.folder / "one", world.folder))
    assert two["windows"].to_list() == one["windows"].to_list()
    torch.testing.assert_close(torch.tensor(two.to_numpy()), torch.tensor(one.to_numpy()), rtol=1e-5, atol=1e-5)
    first = load_file(world.folder / "one" / "generator" / "model.safetensors")
    second = load_file(world.folder / "models" / "generator" / "model.safetensors")
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=1e-5)
