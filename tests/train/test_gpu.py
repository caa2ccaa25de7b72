"""On a GPU: the same numbers as on a CPU, and exact repeats where they are promised. Skipped without one."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_world import TinyWorld, interrupt, make_params, train_by_torchrun

pytestmark = pytest.mark.gpu
EXACT: dict[str, Any] = {"deterministic": True, "precision": "float32"}


def losses(world: TinyWorld, name: str, dropout: float, **train: Any) -> np.ndarray:
    world.train(make_params(backbone={"dropout": dropout}, train={"device": "cuda", **train}), name)
    history = pd.read_csv(world.folder / name / "reports" / "history.csv")
    return history[["train_loss", "valid_loss"]].to_numpy()


def test_float32_training_equals_the_cpu(world: TinyWorld) -> None:
    cpu, gpu = (losses(world, device, 0.0, device=device, precision="float32") for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu, cpu, atol=1e-3)


def test_bfloat16_training_stays_near_float32(world: TinyWorld) -> None:
    exact, rounded = (losses(world, precision, 0.0, precision=precision) for precision in ("float32", "auto"))
    np.testing.assert_allclose(rounded, exact, rtol=0.02)
    assert not np.array_equal(rounded, exact)


def test_padded_training_equals_packed_training(world: TinyWorld) -> None:
    packed, padded = (losses(world, batching, 0.0, batching=batching, **EXACT) for batching in ("packed", "padded"))
    np.testing.assert_allclose(padded, packed, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_deterministic_run_repeats_to_the_byte_even_when_stopped(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    params = make_params(train={"device": "cuda", "ema": 0.9, "deterministic": True, "precision": precision})
    world.train(params, "undisturbed")

    interrupt(world, params, 17, monkeypatch)
    world.train(params)
    assert world.written() == world.written("undisturbed")


@pytest.mark.parametrize("compiled", [False, True])
def test_skipped_training_equals_the_cpu(world: TinyWorld, compiled: bool) -> None:
    """On a GPU, batches with skipped tokens are filled up to few sizes, and recorded where the step is compiled."""
    train = {"learning_rate": 1e-4, "precision": "float32", "max_windows": 1900}
    skipgr = {"token_ratio": 0.3, "sequence_ratio": 0.5, "apply_to": "both"}
    for device in ("cpu", "cuda"):
        world.train(
            make_params(
                strategy="skipgr",
                skipgr=skipgr,
                backbone={"dropout": 0.0},
                train={**train, "device": device, "compile": compiled},
            ),
            device,
        )
    for file in ("passes", "history"):
        cpu, gpu = (
            pd.read_csv(world.folder / device / "reports" / f"{file}.csv").to_numpy() for device in ("cpu", "cuda")
        )
        np.testing.assert_allclose(gpu, cpu, rtol=0.02, atol=1e-2)


@pytest.mark.gpu(2)
def test_two_gpus_equal_one_at_the_same_global_batch(world: TinyWorld, root: Path) -> None:
    train = {"max_windows": 400, "ema": 0.9, "optimizer": "adam", "device": "cuda", "precision": "float32"}
    one = losses(world, "one", 0.0, **train)
    train_by_torchrun(world, root, train=train, backbone={"dropout": 0.0})
    two = pd.read_csv(world.folder / "reports" / "history.csv")[["train_loss", "valid_loss"]].to_numpy()
    np.testing.assert_allclose(two, one, atol=1e-4)
