"""A retriever's training that is stopped or killed goes on from its checkpoint and ends with the same bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_world
from dense_world import dense_files, train_dense
from tiny_world import TinyWorld, stop_at

from pipeline import stopping
from pipeline.errors import UserError
from pipeline.stopping import Stopped
from pipeline.training.loop import Trainer

# Trains in `folder`, and is killed without warning in the middle of one optimizer step.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dense_world import train_dense
from tiny_world import TinyWorld
from pipeline.training import loop

deadly_step, rate = int(sys.argv[3]), loop.learning_rate
def deadly(config, step, windows):  # asked for between the gradients and the update
    if step == deadly_step:
        os.kill(os.getpid(), signal.SIGKILL)
    return rate(config, step, windows)
loop.learning_rate = deadly
train_dense(TinyWorld(Path(sys.argv[2]), None, None))
"""


def checkpoints(world: TinyWorld) -> list[Path]:
    return list((world.folder / "scratch").rglob("checkpoint.pt"))


def test_kill_9_changes_no_byte_of_the_result(world: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    here = str(Path(tiny_world.__file__).parent)
    command = [sys.executable, "-c", KILLED, here, str(world.folder), "17"]
    killed = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(checkpoints(world)) == 1
    train_dense(world)
    assert "resumed at step 14" in capsys.readouterr().out
    assert not checkpoints(world)
    train_dense(world, "undisturbed")
    assert dense_files(world) == dense_files(world, "undisturbed")


def test_a_signal_saves_a_checkpoint_after_the_step(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train = Trainer._train

    def signalled(self: Trainer, *args: Any) -> None:
        if self.state.step == 8:
            signal.raise_signal(signal.SIGTERM)
        train(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train", signalled)
        with pytest.raises(Stopped) as stopped, stopping.watch():
            train_dense(world)
    assert "the checkpoint of step 9 is saved" in stopped.value.stands
    train_dense(world)
    assert "resumed at step 9" in capfd.readouterr().out
    train_dense(world, "undisturbed")
    assert dense_files(world) == dense_files(world, "undisturbed")


def test_other_settings_and_the_stage_train_do_not_take_the_checkpoint(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(8, patch)
        with pytest.raises(KeyboardInterrupt):
            train_dense(world)
    train_dense(world, "other", dropout=0.2)
    assert "resumed" not in capsys.readouterr().out
    assert len(checkpoints(world)) == 1
    train_dense(world, checkpoint_every=50, threads=1)  # without influence on the result
    assert "resumed at step 7" in capsys.readouterr().out


def test_a_second_one_by_hand_is_refused_and_names_the_first(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    train, refused = Trainer._train, list[str]()

    def twice(self: Trainer, *args: Any) -> None:
        if self.state.step == 0 and not refused:
            for keys, name in (({}, "other"), ({"seed": 7}, "run")):
                with pytest.raises(UserError) as error:
                    train_dense(world, name, **keys)
                refused.append(error.value.what)
        train(self, *args)

    monkeypatch.setattr(Trainer, "_train", twice)
    train_dense(world)
    assert len(refused) == 2
    assert all(what.startswith(f"process {os.getpid()} of ") for what in refused)
