"""A command that is told to stop ends soon, says so in one line, and with the exit code of the signal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import wait_until

from pipeline import stopping
from pipeline.cli.ends import STANDS
from pipeline.stopping import dvc_process, started

# A command that waits in a way that `how` names, and answers its end as the command line does.
COMMAND = """
import os, sys, time
sys.argv = ["pipeline", "split"]
from pipeline import cli, stopping
how = os.environ["HOW"]
stopping.GRACE = 0.5 if how == "swallow" else 15  # a busy machine may need a second to raise what came

class Dropping:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(30)

def swallow():
    print("ready", flush=True)
    while True:
        try:
            time.sleep(30)
        except BaseException:
            pass

def drop():
    Dropping()
    time.sleep(30)

def library():
    print("ready", flush=True)
    try:
        time.sleep(30)
    except BaseException:
        raise RuntimeError("Query interrupted") from None

cli.app = lambda **_: {"swallow": swallow, "drop": drop, "library": library}[how]()
with stopping.watch():
    cli.main()
"""
# Starts a stage through a shell as DVC does, and waits for it.
DVC = """
import os, subprocess, sys
environment = {**os.environ, "DVC_STAGE": "train"}
process = subprocess.Popen([sys.argv[1], "-c", sys.argv[2]], env=environment)
process.wait()
"""
STAGE = """
import time
from pipeline.stopping import Stopped, reason, watch
with watch():
    print("ready", flush=True)
    try:
        time.sleep(30)
    except Stopped:
        print("stopped by " + reason(), flush=True)
"""


# Tests may run in the background of a shell, which has its jobs ignore SIGINT.
HEARD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
"""


def begin(code: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """Start a Python process that prints `ready`, and wait until it is."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEARD + code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**{name: value for name, value in os.environ.items() if name != "DVC_STAGE"}, **environment},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("how", "number", "code"),
    [
        ("library", signal.SIGINT, 130),
        ("library", signal.SIGTERM, 143),
        ("library", signal.SIGHUP, 129),
        ("drop", signal.SIGTERM, 143),
        ("swallow", signal.SIGINT, 130),
    ],
)
def test_a_signal_ends_a_command_in_one_line_whatever_libraries_do_with_it(how: str, number: int, code: int) -> None:
    """A library may raise an error of its own, drop what is raised in a destructor, or swallow it for ever."""
    process = begin(COMMAND, HOW=how)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert out == ""
    assert err.startswith("split: stopped ")
    assert err.count("\n") == 1
    if how != "swallow":
        assert STANDS["split"] in err


def test_a_signal_in_the_moment_that_begins_the_watch_is_answered() -> None:
    code = """
import os, signal
install = signal.signal
def late(number, handler):
    install(number, handler)
    if number == signal.SIGHUP:  # the last one
        os.kill(os.getpid(), signal.SIGINT)
from pipeline.__main__ import start
signal.signal = late
start()
"""
    done = subprocess.run([sys.executable, "-c", HEARD + code, "split"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "split: stopped by Ctrl-C (SIGINT); nothing had begun\n")


def test_what_was_ignored_stays_ignored() -> None:
    """`nohup` starts a command with SIGHUP ignored, and a shell its background jobs with SIGINT ignored."""
    code = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGHUP)]\n" + STAGE
    process = begin(code)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    assert "stopped by SIGTERM" in process.communicate(timeout=20)[0]


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize("after", ["", "; true"])  # a shell that has more to do stays between dvc and the stage
def test_a_stage_ends_with_its_dvc_process(shell: str, after: str, tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    dvc = begin(DVC, shell, f"{sys.executable} {script}{after}")
    dvc.kill()
    assert dvc.stdout is not None
    assert dvc.stdout.readline() == f"stopped by the end of its dvc process {dvc.pid}\n"
    dvc.communicate(timeout=20)


def test_a_stage_started_by_hand_outlives_its_shell(tmp_path: Path) -> None:
    script, pid = tmp_path / "stage.py", tmp_path / "pid"
    script.write_text(STAGE)
    command = f"{sys.executable} {script} & echo $! > {pid}; wait"
    shell = begin(DVC.replace('"DVC_STAGE"', '"OTHER"'), "/bin/sh", command)
    wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"), "the shell says no pid", alive=shell)
    stage = int(pid.read_text())
    shell.kill()
    time.sleep(3 * stopping.LOOK)
    assert started(stage)
    os.kill(stage, signal.SIGTERM)
    assert "stopped by SIGTERM" in shell.communicate(timeout=20)[0]


def test_only_a_stage_of_dvc_looks_for_it(tmp_path: Path) -> None:
    assert dvc_process(environment={}) is None
    assert dvc_process(tmp_path, environment={"DVC_STAGE": "train"}) is None  # no /proc, as on macOS
    assert dvc_process(environment={"DVC_STAGE": "a stage that nobody else has"}) == (
        os.getppid(),
        started(os.getppid()),
    )


def test_a_process_that_ended_is_not_the_one_that_takes_its_number() -> None:
    process = subprocess.Popen(["sleep", "30"])
    before = started(process.pid)
    assert before.isdigit()
    process.kill()
    wait_until(lambda: not started(process.pid), "a zombie does not count as ended", look=0.01)
    process.wait()
