"""The torture itself: verdicts are those that its page states, and a sample of the trials passes."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.torture.__main__ import BEGIN, END, PAGE, table
from benchmarks.torture.process import Ended, children, refuse_open, working_in


def test_what_no_command_may_do_is_seen() -> None:
    assert Ended(1, "error: the disk is full", 1.0).fault() == ""
    assert Ended(-signal.SIGTERM, "", 1.0).fault() == ""
    for ended in (
        Ended(1, "Traceback (most recent call last):\nKeyError: 'x'", 1.0),
        Ended(1, "error: KeyError: 'x'\n  this is a fault of sidpipe, not of your settings", 1.0),
        Ended(-signal.SIGABRT, "", 1.0),
        Ended(0, "", 31.0, hung=True),
    ):
        assert ended.fault()


def test_the_table_counts_each_part(tmp_path: Path) -> None:
    row = {
        "part": "disk full",
        "of": 280,
        "trial": "disk-1",
        "verdict": "ok",
        "seconds": 1.5,
        "detail": "",
        "commit": "abc",
    }
    lines = table([row, {**row, "verdict": "refused"}, {**row, "verdict": "FAIL", "detail": "hang\nmore"}]).splitlines()
    assert "| disk full | 3 | 280 | 1 | 1 | 1 |" in lines
    assert "- `disk-1`: hang" in lines
    page = PAGE.read_text()
    assert page.index(BEGIN) < page.index(END)
    assert tmp_path.exists()


def test_the_chosen_opening_of_a_file_fails_as_on_a_full_disk(tmp_path: Path) -> None:
    """In a process of its own, because a hook stays until the end."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            refuse_open(2, tmp_path)()
            (tmp_path / "first").write_text("")
            (tmp_path / "first").read_text()
            try:
                (tmp_path / "second").write_text("")
            except OSError as error:
                code = 0 if "No space left" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_processes_are_found_by_parent_and_by_folder(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "30"], cwd=tmp_path)
    try:
        assert process.pid in children(os.getpid())
        assert process.pid in working_in(tmp_path)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_some_trials_that_need_no_dvc_pass(root: Path, tmp_path: Path) -> None:
    """Another sample at each run: `--quick --only NAME --seed N` repeats a trial that fails."""
    seed, file = str(random.Random(os.urandom(8)).randrange(10**6)), tmp_path / "trials.jsonl"
    options = ["--quick", "--hours", "0.0012", "--seed", seed, "--file", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.torture", *options], cwd=root, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert file.read_text()
