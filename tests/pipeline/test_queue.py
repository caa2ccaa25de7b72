"""Queued experiments that are killed, or that train with the same settings, under the real DVC."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from patience import wait_until
from project_folder import Repository

from pipeline.locks import is_awaited

pytestmark = pytest.mark.long
LONGER = ["-S", "train.max_windows=30000"]  # so that a run lasts for more than a moment


@pytest.fixture
def project(origin: Repository, tmp_path: Path) -> Repository:
    """A clone that has no results yet, and its own queue and cache."""
    subprocess.run(["git", "clone", "-q", str(origin.path), str(tmp_path / "project")], check=True)
    return Repository(tmp_path / "project")


def processes(folder: Path, word: str) -> list[int]:
    """The processes that work below a folder and have this word in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            inside = Path(os.readlink(path / "cwd")).is_relative_to(folder)
            if inside and word in (path / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def checkpoints(project: Repository) -> list[Path]:
    return list((project.path / ".sidpipe/checkpoints").rglob("checkpoint.pt"))


@pytest.mark.parametrize(("shell", "killed"), [("/bin/sh", ["exec-run"]), ("/bin/bash", ["queue", "exec-run"])])
def test_a_queued_run_that_was_killed_goes_on_when_it_is_queued_again(
    shell: str, killed: list[str], project: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC's process of the run is killed; its worker then sees a failed run, or is killed first and tells nobody."""
    monkeypatch.setenv("SHELL", shell)
    project.run("dvc", "exp", "run", "--queue", "-n", "killed", *LONGER)
    project.launch("dvc", "queue", "start")
    wait_until(lambda: checkpoints(project), "no checkpoint in the project")
    for word in killed:
        for pid in processes(project.path, word):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes(project.path, "pipeline"), "the stage outlives its dvc", 60)
    if len(killed) > 1:
        assert "Running" in project.run("dvc", "queue", "status")
        project.run("dvc", "queue", "kill", "-f", "killed")
    wait_until(lambda: "Failed" in project.run("dvc", "queue", "status"), "the killed run counts as failed")
    assert checkpoints(project)
    text = project.run("dvc", "exp", "run", "--temp", "-n", "again", *LONGER)
    assert "resumed at step" in text
    assert not checkpoints(project)


def test_of_two_workers_with_the_same_settings_the_second_waits(project: Repository) -> None:
    project.run("dvc", "exp", "run", "--queue", "-S", "evaluate.beam=20,30", *LONGER)
    names = [line.split()[1] for line in project.run("dvc", "queue", "status").splitlines() if "Queued" in line]
    project.launch("dvc", "queue", "start", "-j", "2")
    # The first one stands still until the second waits: else it may have ended when the second comes.
    wait_until(lambda: checkpoints(project), "no checkpoint in the project")
    folder = project.path / ".sidpipe/checkpoints"
    (lock,) = [path for path in folder.glob("*.lock") if not path.name.startswith("output-")]
    first = int(lock.read_text().split()[1])
    os.kill(first, signal.SIGSTOP)
    try:
        wait_until(lambda: any(map(is_awaited, folder.glob("*.waits"))), "the second worker does not wait")
    finally:
        os.kill(first, signal.SIGCONT)
    wait_until(project.queue_is_done, "the queue is still at work", look=1)
    assert len(names) == 2
    logs = [project.run("dvc", "queue", "logs", name) for name in names]
    assert sum("waiting for it" in log for log in logs) == 1, logs
    assert sum("resumed at step" in log for log in logs) == 1, logs
