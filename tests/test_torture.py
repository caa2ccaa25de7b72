"""The torture itself: verdicts are those that its page states, and a sample of the trials passes."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.torture.__main__ import BEGIN, END, PAGE, table
from benchmarks.torture.bounds import knob_values
from benchmarks.torture.files import key_lines, replaced
from benchmarks.torture.process import Ended, children, forked, refuse_open, working_in
from pipeline.strategies.registry import settings_types


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


def test_a_signal_that_comes_at_once_ends_the_command(tmp_path: Path) -> None:
    """Before it began, as it would end a new process; and without a word of the torture itself."""
    for _ in range(5):
        ended = forked(["check"], tmp_path, kill=(signal.SIGINT, 0.0))
        assert (ended.code, ended.fault()) in ((-signal.SIGINT, ""), (128 + signal.SIGINT, ""))


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


def test_the_bounds_of_every_knob_are_read_from_its_type() -> None:
    values = knob_values(settings_types())
    assert values["quantize", "levels"] == [1, 32]
    assert values["dense", "enabled"] == [True, False]
    assert 0.999 < values["dense", "dropout"][1] < 1, "a bound that does not belong to the range"
    assert values["train", "validate_every"] == ["auto", 1, 10**9]
    assert {section for section, _ in values} >= {"seed", "ingest", "embed", "split", "backbone", "skipgr", "evaluate"}


def test_a_value_of_several_lines_is_replaced_whole() -> None:
    text = "a: 1\nb:\n  c:\n  - 1\n  - 2\n  d: 3\n"
    assert replaced(text, key_lines(text, "b", "d"), "4") == "a: 1\nb:\n  c:\n  - 1\n  - 2\n  d: 4\n"
    assert replaced(text, key_lines(text, "a", ""), "2").startswith("a: 2\nb:\n")


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
