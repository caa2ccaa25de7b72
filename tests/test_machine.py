"""How many threads a process takes, which device, and how much memory it says it used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.machine import peak_memory_gib, pick_device, running_experiments, set_threads, share_of_threads


def processes(folder: Path, *commands: str) -> Path:
    """Makes a /proc with these command lines."""
    for number, command in enumerate(commands, 100):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "cmdline").write_bytes(b"\0".join(word.encode() for word in command.split()) + b"\0")
    (folder / "self").mkdir(parents=True)
    return folder


QUEUED = "python -m dvc exp exec-run --infofile .dvc/tmp/exps/run/abc/abc.run"


@pytest.mark.parametrize(
    ("commands", "running"),
    [
        ((), 1),
        (("python -m dvc exp run", "vim exec-run"), 1),
        ((QUEUED,), 1),
        ((QUEUED, QUEUED, "python -m pipeline train", "python -m dvc exp queue-worker w1"), 2),
    ],
)
def test_experiments_of_the_dvc_queue_are_counted(tmp_path: Path, commands: tuple[str, ...], running: int) -> None:
    assert running_experiments(processes(tmp_path, *commands)) == running


@pytest.mark.parametrize(
    ("experiments", "local", "quota", "threads"),
    [
        (1, "", "", 8),
        (2, "", "", 4),
        (3, "", "", 2),
        (9, "", "", 1),  # shared among experiments, never below one
        (1, "4", "", 2),  # shared among the processes that torchrun starts
        (1, "", "max 100000", 8),
        (1, "", "250000 100000", 3),
        (2, "", "250000 100000", 1),  # a container's share
    ],
)
def test_threads_are_the_cores_available_over_those_who_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiments: int, local: str, quota: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local or "1")
    if quota:
        (tmp_path / "cpu.max").write_text(quota)
    proc = processes(tmp_path / "proc", *[QUEUED] * experiments)
    assert share_of_threads(None, proc, tmp_path / "cpu.max") == threads


@pytest.mark.parametrize(("numbers", "threads"), [(1, 1), (2**17, 1), (2**18, 2), (2**30, 8)])
def test_small_tensors_get_no_more_threads_than_they_keep_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: int, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert share_of_threads(numbers, processes(tmp_path / "proc"), tmp_path / "cpu.max") == threads


def test_auto_takes_the_gpu_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="torch sees no GPU"):
        pick_device("cuda")


def test_peak_memory_is_about_what_is_held_now_or_more() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])  # the kernel counts the two in separate batches
    assert 0.9 * pages * os.sysconf("SC_PAGE_SIZE") / 2**30 <= peak_memory_gib(torch.device("cpu")) < 1000


def test_threads_are_set_as_wanted_or_as_shared() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(0, 2)
        assert torch.get_num_threads() == 2
        set_threads(3, 2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


LIMITED = """
import resource, torch
from pipeline.errors import UserError
from pipeline.machine import set_threads
space = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (space, space))
try:
    set_threads(1024, 1, "dense.threads")
except UserError as error:
    print(error)
torch.ones(2**20).add_(1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_more_threads_than_the_limit_allows_are_refused_and_do_not_end_the_process() -> None:
    """OpenMP aborts the process where it cannot start a thread."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "dense.threads is 1,024, but this process can safely start no more than" in done.stdout
