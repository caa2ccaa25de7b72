"""The loss curve of a small fixed run. A change that moves it changes what is learned, and must say so.

Write it anew, from the root of the project, with `python tests/train/test_golden.py`.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from tiny_world import TinyWorld, make_params, write_world

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "train_history.csv"


def history(world: TinyWorld) -> pd.DataFrame:
    world.train(make_params(train={"ema": 0.9, "max_windows": 2000, "learning_rate": 0.003, "threads": 1}))
    return pd.read_csv(world.folder / "run" / "reports" / "history.csv")


def test_the_loss_curve_is_the_recorded_one(world: TinyWorld) -> None:
    golden, now = pd.read_csv(GOLDEN), history(world)
    assert now["windows"].to_list() == golden["windows"].to_list()
    np.testing.assert_allclose(now[["train_loss", "valid_loss"]], golden[["train_loss", "valid_loss"]], atol=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.parent.mkdir(exist_ok=True)
        history(write_world(Path(folder))).to_csv(GOLDEN, index=False)
    print(GOLDEN.read_text())
