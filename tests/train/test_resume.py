"""A run that is killed goes on from its checkpoint and ends with the same bytes."""

import ast
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_world
import torch
import yaml
from patience import PATIENCE, wait_until
from tiny_world import TinyWorld, interrupt, make_params, stop_at

from pipeline import stopping
from pipeline.errors import UserError
from pipeline.stopping import Stopped
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.code import DOCUMENTED, ENGINE, code_fingerprint, without_words
from pipeline.training.loop import State, Trainer

# Trains with the arguments given, and is killed without warning in the middle of one optimizer step.
KILLED = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_world import TinyWorld, make_params
from pipeline.training import loop

deadly_step, rate = int(sys.argv[4]), loop.learning_rate
def deadly(config, step, windows):  # asked for between the gradients and the update
    if step == deadly_step:
        os.kill(os.getpid(), signal.SIGKILL)
    return rate(config, step, windows)
loop.learning_rate = deadly
TinyWorld(Path(sys.argv[2]), None, None).train(make_params(**json.loads(sys.argv[3])))
"""
SETTINGS: dict[str, Any] = {"train": {"ema": 0.9, "clip_norm": 1.0, "schedule": "cosine", "warmup_steps": 5}}


def kill_at(world: TinyWorld, step: int, settings: dict[str, Any]) -> None:
    """Train in a process of its own until SIGKILL strikes in optimizer step `step`."""
    here = str(Path(tiny_world.__file__).parent)
    command = [sys.executable, "-c", KILLED, here, str(world.folder), json.dumps(settings), str(step)]
    killed = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (world.folder / "run").exists()


def checkpoint_files(world: TinyWorld) -> list[Path]:
    return list((world.folder / "scratch").rglob("checkpoint.pt"))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_kill_9_at_a_random_step_changes_no_byte_of_the_result(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    step = random.Random(os.urandom(8)).randrange(8, 29)  # checkpoints fall on 7, 14, 21, 28; an epoch has 8 steps
    kill_at(world, step, SETTINGS)
    assert len(checkpoint_files(world)) == 1
    world.train(make_params(**SETTINGS))
    assert f"resumed at step {step // 7 * 7}" in capsys.readouterr().out, f"killed at step {step}"
    world.train(make_params(**SETTINGS), "undisturbed")
    assert world.written() == world.written("undisturbed"), f"killed at step {step}"
    assert not checkpoint_files(world)


def test_wherever_a_run_stops_it_ends_with_the_same_bytes(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"train": {**SETTINGS["train"], "windows": "prefixes", "accumulate": 2}}
    world.train(make_params(**settings), "undisturbed")
    for steps in (7, 10, 14, 19, 24):  # on a checkpoint, on a validation, on both, in mid-epoch
        interrupt(world, make_params(**settings), steps, monkeypatch)
        world.train(make_params(**settings), str(steps))
        assert world.written(str(steps)) == world.written("undisturbed"), f"stopped after {steps}"


def test_a_run_with_muon_goes_on_with_its_momenta(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"train": {**SETTINGS["train"], "optimizer": "muon", "weight_decay": 0.1}}
    world.train(make_params(**settings), "undisturbed")
    interrupt(world, make_params(**settings), 10, monkeypatch)
    world.train(make_params(**settings), "resumed")
    assert world.written("resumed") == world.written("undisturbed")


def test_a_signal_saves_a_checkpoint_after_the_step_and_the_rest_is_trained_later(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints fall on steps 7, 14, ...: the signal comes in steps between, in a validation, and twice in a row."""
    world.train(make_params(**SETTINGS), "undisturbed")
    for step in (4, 9, 10, 20):
        with monkeypatch.context() as patch:
            _signal_in(step, patch)
            with pytest.raises(Stopped) as stopped, stopping.watch():
                world.train(make_params(**SETTINGS))
        assert f"the checkpoint of step {step} is saved" in stopped.value.stands
        assert "the step is finished and saved first" in capfd.readouterr().err
    world.train(make_params(**SETTINGS))
    assert "resumed at step 20" in capfd.readouterr().out
    assert world.written() == world.written("undisturbed")


def test_a_second_signal_stops_at_once(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stopping.SAME", 0.0)
    _signal_in(10, monkeypatch, times=2)
    with pytest.raises(Stopped) as stopped, stopping.watch():
        world.train(make_params(**SETTINGS))
    assert stopped.value.stands == ""


def _signal_in(step: int, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Let SIGTERM come in the computation of this optimizer step (counted from 1)."""
    train = Trainer._train

    def signalled(self: Trainer, *args: Any) -> None:
        for _ in range(times if self.state.step == step - 1 else 0):
            signal.raise_signal(signal.SIGTERM)
        train(self, *args)

    monkeypatch.setattr(Trainer, "_train", signalled)


# ---------------------------------------------------------------------------------------------------- two at once


def test_a_second_train_by_hand_is_refused_and_names_the_first(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder with the same settings shares the checkpoint, other settings share the folder."""
    train, refused = Trainer._train, list[str]()

    def twice(self: Trainer, *args: Any) -> None:
        if self.state.step == 0 and not refused:
            for settings, name in (({}, "other"), ({"seed": 7}, "run")):
                with pytest.raises(UserError) as error:
                    world.train(make_params(**settings), name)
                refused.append(error.value.what)
        train(self, *args)

    monkeypatch.setattr(Trainer, "_train", twice)
    world.train(make_params())
    assert len(refused) == 2
    assert all(what.startswith(f"process {os.getpid()} of ") for what in refused)
    assert not list((world.folder / "scratch").rglob("*.lock"))


@pytest.mark.slow
def test_a_train_of_dvc_waits_for_the_first_and_goes_on_from_its_checkpoint(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    here, log = str(Path(tiny_world.__file__).parent), world.folder / "log"
    code = "import sys; sys.path.insert(0, sys.argv[1])\n" + WAITING
    train, waiting = Trainer._train, list[Any]()

    def beside(self: Trainer, *args: Any) -> None:
        if self.state.step == 10:
            with log.open("wb") as file:
                waiting.append(subprocess.Popen([sys.executable, "-c", code, here, str(world.folder)], stdout=file))
            said = log.read_text
            wait_until(lambda: "waiting for it" in said(), "the second does not wait", alive=waiting[0], output=said)
            monkeypatch.setattr(Trainer, "_train", train)
        train(self, *args)

    monkeypatch.setattr(Trainer, "_train", beside)
    world.train(make_params(), "first")
    assert waiting[0].wait(timeout=PATIENCE) == 0
    assert "resumed at step" in log.read_text()
    assert world.written("second") == world.written("first")
    assert not checkpoint_files(world)


WAITING = """
from pathlib import Path
from tiny_world import TinyWorld, make_params
TinyWorld(Path(sys.argv[2]), None, None).train(make_params(), "second")
"""


# ---------------------------------------------------------------------------------------------------- what starts anew


def test_a_run_that_patience_had_ended_does_not_train_on(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"train": {"learning_rate": 1e-9, "validate_every": 7, "patience": 2, "max_windows": 10**6}}
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.train.stage.save_generator", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            world.train(make_params(**settings))
    assert len(checkpoint_files(world)) == 1
    stop_at(21, monkeypatch)
    assert world.train(make_params(**settings))["best_step"] == 7


def test_another_parameter_starts_anew_and_leaves_the_checkpoint(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(world, make_params(), 10, monkeypatch)
    world.train(make_params(train={"learning_rate": 0.005}), "other")
    assert "resumed" not in capsys.readouterr().out
    assert len(checkpoint_files(world)) == 1
    world.train(make_params())
    assert "resumed at step 7" in capsys.readouterr().out


def test_another_input_starts_anew(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(world, make_params(), 10, monkeypatch)
    (world.folder / "sids").unlink()
    replace(world.sids, codes_IL=world.sids.codes_IL[::-1]).write(world.folder / "sids")
    world.train(make_params())
    assert "resumed" not in capsys.readouterr().out


def test_a_checkpoint_of_other_code_is_named_and_stays(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(world, make_params(), 10, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.train.stage.code_fingerprint", lambda _: "f" * 64)
        world.train(make_params(), "edited")
    said = capsys.readouterr().out
    assert "resumed" not in said.replace("is not resumed", "")
    assert said.count("other code made the checkpoint of these settings") == 1
    assert str(checkpoint_files(world)[0].parent) in said
    world.train(make_params())
    assert "resumed at step 7" in capsys.readouterr().out
    assert not checkpoint_files(world)


def test_every_code_file_of_training_counts(root: Path, tmp_path: Path) -> None:
    """The list is that of dvc.yaml, and changed code and a new or renamed file change the fingerprint."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    for stage in ("train", "dense"):
        code = {dep for dep in stages[stage]["deps"] if dep.startswith("pipeline/")}
        assert {f"pipeline/{name}" for name in (stage, *ENGINE)} == code
    package = shutil.copytree(root / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    before = code_fingerprint("train", package)
    assert before == code_fingerprint("train")
    (package / "presets/kinds.py").write_text("")  # no part of training
    assert code_fingerprint("train", package) == before
    (package / "metrics.py").write_text((package / "metrics.py").read_text() + "# a comment\n")
    assert code_fingerprint("train", package) == before
    (package / "metrics.py").write_text((package / "metrics.py").read_text() + "X = 1\n")
    edited = code_fingerprint("train", package)
    (package / "ops/new.py").write_text("")
    assert len({before, edited, code_fingerprint("train", package)}) == 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('"""Words."""\nx = 1  # one\n', "'''Other\n\nwords.\n'''\n\n# two\nx = 1\n", True),
        ('def f():\n    """Words."""\n    return 1\n', "def f():\n    return 1\n", True),
        ('class A:\n    """Words."""\n\n    x = 1\n', 'class A:\n    r"""Others."""  # more\n    x = 1\n', True),
        ("async def f():\n    '''Ä'''\n    return 'ä'\n", "async def f():\n    '''Ö'''\n    return 'ä'\n", True),
        ("x = 1\n", "x = 2\n", False),
        ("x = '# one'\n", "x = '# two'\n", False),
        ('x = """\n# one\n"""\n', 'x = """\n# two\n"""\n', False),
        ("if x:\n    y = 1\n", "if x:\n    pass\ny = 1\n", False),
        ("def f(): 'words'\nf()\n", "def f(): 'words'\n", False),
        ("'words'; x = 1\n", "'words'; x = 2\n", False),
        ("def f():\n    print('words')\n", "def f():\n    print('others')\n", False),
        ("def f(:  # one\n", "def f(:  # two\n", False),
    ],
)
def test_words_are_no_code(one: str, other: str, same: bool) -> None:
    assert (without_words(one) == without_words(other)) == same


def test_code_without_words_means_the_same(root: Path) -> None:
    for path in sorted((root / "pipeline").rglob("*.py")):
        text = path.read_text()
        bare, whole = ast.parse(without_words(text)), ast.parse(text)
        for node in ast.walk(whole):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                node.body[0:1] = [] if len(node.body) > 1 else [ast.Expr(ast.Constant(...))]
        assert ast.dump(bare) == ast.dump(whole), path


def test_knobs_without_influence_keep_the_checkpoint(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(world, make_params(), 10, monkeypatch)
    world.train(make_params(train={"checkpoint_every": 50}))
    assert "resumed at step 7" in capsys.readouterr().out
    world.train(make_params(), "undisturbed")
    assert world.written() == world.written("undisturbed")


def test_a_resumed_run_keeps_its_number_of_threads(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(world, make_params(), 10, monkeypatch)
    monkeypatch.setattr("pipeline.training.assembly.share_of_threads", lambda _: 2)
    world.train(make_params(train={"threads": 0}))
    assert "1 threads, resumed at step 7" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty"])
def test_a_damaged_checkpoint_is_named_and_stays(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    interrupt(world, make_params(), 10, monkeypatch)
    (path,) = checkpoint_files(world)
    whole = path.read_bytes()
    middle = len(whole) // 2
    one_bit = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes({"cut": whole[:middle], "one bit": one_bit, "empty": b""}[damage])
    with pytest.raises(UserError, match="cannot be read") as error:
        world.train(make_params())
    assert str(path.parent) in error.value.fix
    assert path.exists()
    assert not (world.folder / "run").exists()


def test_a_checkpoint_keeps_the_names_of_older_versions() -> None:
    """Older versions called the epoch a pass: a run that an older version began must go on."""
    state = State(step=7, epoch=3, position=40)
    saved = state.saved()
    assert (saved["step"], saved["pass_index"], saved["place"]) == (7, 3, 40)
    assert State.restored(saved) == state


def test_a_full_disk_is_told_and_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "f" * 64)
    checkpoints.save({"step": 1, "weights": torch.ones(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match="could not write"):
            checkpoints.save({"step": 2, "weights": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    saved = checkpoints.load(torch.device("cpu"))
    assert saved is not None
    assert saved["step"] == 1
    assert [path.name for path in checkpoints.folder.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    checkpoints = Checkpoints(tmp_path, "f" * 64)
    checkpoints.save({"step": Evil()})
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.load(torch.device("cpu"))
    assert not (tmp_path / "owned").exists()
