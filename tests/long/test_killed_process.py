"""Of several processes under torchrun one is killed: the others end within seconds and name it, and the run goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from patience import wait_until
from tiny_world import TinyWorld, lay_out, make_params, write_world

pytestmark = pytest.mark.long
LONG = {"max_windows": 400_000, "validate_every": 10**6, "checkpoint_every": 5, "optimizer": "adam"}


def torchrun(world: TinyWorld, root: Path, processes: int, log: Path) -> "subprocess.Popen[bytes]":
    """Start the command that a user types."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*command, "-m", "pipeline", "train"],
            cwd=world.folder,
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )


def processes_of(torchrun_pid: int) -> dict[int, int]:
    """The pid of each rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (path / "environ").read_bytes()
        except OSError:
            continue
        if parent == torchrun_pid and (rank := re.search(rb"\0RANK=(\d+)\0", variables)):
            found[int(rank[1])] = int(path.name)
    return found


def wait_for_checkpoint(folder: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return once training has saved a checkpoint."""
    saved = ".sidpipe/checkpoints/*/checkpoint.pt"
    wait_until(lambda: list(folder.glob(saved)), "no checkpoint", look=0.1, alive=process, output=log.read_text)


@pytest.mark.parametrize(("processes", "victim"), [(2, 1), (2, 0), (4, 2)])
def test_the_others_end_within_ten_seconds_and_name_it(tmp_path: Path, root: Path, processes: int, victim: int) -> None:
    world = write_world(tmp_path)
    lay_out(world, train=LONG)
    log = tmp_path / "log"
    running = torchrun(world, root, processes, log)
    try:
        wait_for_checkpoint(tmp_path, running, log)
        os.kill(processes_of(running.pid)[victim], signal.SIGKILL)
        began = time.monotonic()
        assert running.wait(60) != 0
        assert time.monotonic() - began < 10
    finally:
        running.kill()
    text = log.read_text()
    assert not processes_of(running.pid)
    assert text.count(f"process {victim + 1} of {processes} was killed") == processes - 1, text
    assert not re.search(r"process \d of \d has ended", text), text
    assert "this is a fault of sidpipe" not in text


@pytest.mark.parametrize("before", [2, 4])
def test_a_killed_run_goes_on_in_fewer_processes(tmp_path: Path, root: Path, before: int) -> None:
    """The result is that of a run in one process, up to the order in which numbers are added."""
    world = write_world(tmp_path)
    train = {**LONG, "max_windows": 6000, "threads": 1}
    lay_out(world, train=train)
    log = tmp_path / "log"
    running = torchrun(world, root, before, log)
    try:
        wait_for_checkpoint(tmp_path, running, log)
        os.kill(processes_of(running.pid)[before - 1], signal.SIGKILL)
        running.wait(60)
    finally:
        running.kill()
    fewer = torchrun(world, root, before // 2, log)
    assert fewer.wait(180) == 0, log.read_text()
    assert "resumed at step" in log.read_text()
    world.train(make_params(train=train), "one")
    one, two = (pd.read_csv(folder / "reports/history.csv") for folder in (tmp_path / "one", tmp_path))
    assert two["windows"].to_list() == one["windows"].to_list()
    # Adam turns the last bits of a gradient near zero into steps, so that weights drift apart, but not the loss.
    assert two["valid_loss"].iloc[-1] == pytest.approx(one["valid_loss"].iloc[-1], rel=0.01)
    assert two["train_loss"].iloc[-1] == pytest.approx(one["train_loss"].iloc[-1], rel=0.01)
