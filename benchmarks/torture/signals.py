"""Trials that send a signal: to a stage that was started by hand, to `dvc repro`, and to workers of DVC's queue."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.torture.process import LIMITS, begin, forked, working_in
from benchmarks.torture.project import STAGES, copy, digest, environment, remove
from benchmarks.torture.trial import FAIL, OK, Trial, World, again, compared

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}


def signals_by_hand() -> Iterator[Trial]:
    """Give trials that signal a stage at a random moment and run it again."""
    for number in range(140):
        stage, name = STAGES[number % len(STAGES)], list(SIGNALS)[number % 3]

        def run(world: World, rng: random.Random, stage: str = stage, name: str = name) -> tuple[str, str]:
            folder = copy(world.reference, world.scratch / "hand")
            if rng.random() < 0.5:
                remove(folder, stage)
            after = rng.uniform(0, 1.1 * world.seconds.get(stage, 1.0))
            ended = forked([stage], folder, kill=(SIGNALS[name], after))
            if fault := ended.fault():
                return FAIL, fault
            if ended.code not in (0, 128 + SIGNALS[name], -SIGNALS[name]):
                return FAIL, f"exit code {ended.code}: {ended.text[-200:]}"
            return again(world, folder, stage, f"{name} after {after:.2f} s")

        yield Trial("signals, stages by hand", f"hand-{stage}-{name}-{number}", run)


def signals_repro() -> Iterator[Trial]:
    """Give trials that signal `dvc repro`, its whole group or dvc alone, and repeat it until it ends by itself."""
    for number in range(40):
        name, whom = list(SIGNALS)[number % 3], ("group", "dvc")[number % 2]

        def run(world: World, rng: random.Random, name: str = name, whom: str = whom) -> tuple[str, str]:
            folder = copy(world.reference, world.scratch / "repro", dvc=True)
            stage = rng.choice(STAGES[:-1])
            for later in STAGES[STAGES.index(stage) : -1]:
                remove(folder, later)
            log = folder / "torture.log"
            dvc = begin(["dvc", "repro", "--force", "--single-item", stage], folder, log)
            after = rng.uniform(0, 4 + world.seconds[stage] + 2)
            time.sleep(after)
            (os.killpg if whom == "group" else os.kill)(dvc.pid, SIGNALS[name]) if dvc.poll() is None else None
            what = f"{name} to {whom} after {after:.1f} s in {stage}"
            if not _quiet(folder, dvc):
                return FAIL, f"{what}: still at work after {LIMITS.hang:.0f} s"
            text = log.read_text(errors="replace")
            if "this is a fault of sidpipe" in text:
                return FAIL, f"{what}: {text[-300:]}"
            return _repro(world, folder, what)

        yield Trial("signals, dvc repro", f"repro-{whom}-{name}-{number}", run)


def _quiet(folder: Path, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until no process works in the folder; after `LIMITS.hang` seconds kill what does, and return False."""
    deadline = time.monotonic() + LIMITS.hang + 30  # dvc itself, told by SIGINT, ends with its stage
    while (process.poll() is None or working_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = working_in(folder)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return not left


def _repro(world: World, folder: Path, what: str) -> tuple[str, str]:
    """Run `dvc repro` to its end, and compare; what DVC left cut is mended first, as docs/reliability.md says."""
    code, text = _run(["dvc", "repro"], folder)
    if code and "rwlock" in text and "corrupted" in text:  # DVC writes its table of locks in place
        (folder / ".dvc/tmp/rwlock").unlink()
        what += "; DVC's table of locks was cut, and deleted"
        code, text = _run(["dvc", "repro"], folder)
    if code and "dvc.lock" in text and "validation failed" in text:  # DVC writes dvc.lock in place
        _run(["git", "checkout", "dvc.lock"], folder)
        what += "; dvc.lock was cut, and git brought it back"
        code, text = _run(["dvc", "repro"], folder)
    if code is None:
        return FAIL, f"{what}, then dvc repro hangs"
    return (FAIL, f"{what}, then: {text[-400:]}") if code else compared(world, digest(folder), what)


def _run(command: list[str], folder: Path) -> tuple[int | None, str]:
    """Return the exit code of a command, None where it hangs, and what it printed."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=6 * LIMITS.hang
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def signals_queue() -> Iterator[Trial]:
    """Give trials that kill a queued run (its worker, DVC's process of the run, the stage, all) and run it again."""
    for number in range(20):
        whom = ("stage", "run", "worker", "all")[number % 4]
        name = ("KILL", "TERM")[number % 2] if whom != "stage" else ("KILL", "TERM", "INT")[number % 3]

        def run(world: World, rng: random.Random, name: str = name, whom: str = whom) -> tuple[str, str]:
            folder = copy(world.reference, world.scratch / "queue", dvc=True)
            log = folder / "torture.log"
            settings = ["-S", f"seed={rng.randrange(10**6)}", "-S", "train.max_windows=15000"]
            begin(["dvc", "exp", "run", "--queue", "-n", "first", *settings], folder, log).wait()
            begin(["dvc", "queue", "start"], folder, log).wait()
            what = f"{name} to {whom} {_await_moment(folder, rng)}"
            _signal(_queue_processes(folder, whom), SIGNALS[name])
            time.sleep(2)
            begin(["dvc", "queue", "kill", "-f", "first"], folder, log).wait()
            begin(["dvc", "queue", "stop", "--kill"], folder, log).wait()
            deadline = time.monotonic() + LIMITS.hang
            while (left := _queue_processes(folder, "stage")) and time.monotonic() < deadline:
                time.sleep(0.5)
            if left:
                return FAIL, f"{what}: a stage is still at work after {LIMITS.hang:.0f} s"
            _signal(_queue_processes(folder, "all"), signal.SIGKILL)
            saved = _has_checkpoint(folder)
            code = begin(["dvc", "exp", "run", "--temp", "-n", "second", *settings], folder, log).wait()
            text = log.read_text(errors="replace")
            if code or "Ran experiment" not in text or "this is a fault of sidpipe" in text:
                return FAIL, f"{what}, then exit code {code}: {text[-2000:]}"
            if saved and "resumed at step" not in text:
                return FAIL, f"{what}, then its checkpoint was not used: {text[-2000:]}"
            return OK, what + (", resumed from its checkpoint" if saved else "")

        yield Trial("signals, queue workers", f"queue-{whom}-{name}-{number}", run)


def _await_moment(folder: Path, rng: random.Random) -> str:
    """Wait for some seconds or, in most trials, until training has saved a checkpoint; return the words for it."""
    after, training = rng.uniform(3, 12), rng.random() < 0.6
    deadline = time.monotonic() + 5 * LIMITS.hang
    while training and not _has_checkpoint(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(after / 10 if training else after)
    return "while it trained" if training else f"after {after:.1f} s"


def _signal(processes: list[int], number: int) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / ".sidpipe/checkpoints").rglob("checkpoint.pt"))


def _queue_processes(folder: Path, whom: str) -> list[int]:
    """Return the processes of the queue that work in the project or its copies: stage, run, worker or all."""
    found = []
    for pid in working_in(folder):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            kind = "stage" if "pipeline" in words else "run" if "exec-run" in words else "worker"
            found += [pid] if whom in (kind, "all") else []
    return found
