"""The trials: what is done to a copy of the project, and the verdict on what came of it."""

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.torture.process import HANG, Ended, begin, children, forked, limit_files, refuse_open, working_in
from benchmarks.torture.project import STAGES, copy, digest, environment, remove

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
OK = "ok"
REFUSED = "refused"
FAIL = "FAIL"
SAYS = ("recommend", "explain", "sids")  # commands whose result is what they print
_texts: dict[str, str] = {}  # command -> what it prints in the undamaged project
# Files that stages read -> the commands that read them; a folder stands for each file in it.
READERS = {
    "data/interactions": (["embed"], ["quantize"], ["split"], ["train"], ["recommend", "--user", "u00001"]),
    "data/embeddings": (["quantize"],),
    "data/sids": (["train"], ["sids", "--item", "v00001"], ["track"]),
    "data/splits": (["count"], ["train"], ["evaluate"]),
    "models/counting": (["evaluate"],),
    "models/generator": (["evaluate"], ["recommend", "--user", "u00001"], ["explain", "--user", "u00001"]),
    "reports": (["evaluate"], ["track"]),
}


@dataclass(frozen=True)
class World:
    """The finished project, the digest of its outputs, the folder for copies, and seconds of each stage."""

    reference: Path
    outputs: dict[str, str]
    scratch: Path
    seconds: dict[str, float]


@dataclass(frozen=True)
class Trial:
    """A trial has a name, which is also its seed, and belongs to a part, which is a row of the table."""

    part: str
    name: str
    run: Callable[[World, random.Random], tuple[str, str]]


def all_trials(world: World, seed: int) -> list[Trial]:
    """Return every trial. The first of them are a random sample of all parts, with more of those that take less time.

    The number beside a part is how many of its trials come in the time of one queued run.
    """
    parts = [
        (1, signals_queue()),
        (2, signals_repro()),
        (8, signals_by_hand()),
        (8, full_disks()),
        (5, knobs(world)),
        (3, hostile_servers()),
        (40, damages(world)),
    ]
    order = []
    for share, part in parts:
        trials = list(part)
        random.Random(seed).shuffle(trials)
        order += [(number / share, trial) for number, trial in enumerate(trials)]
    return [trial for _, trial in sorted(order, key=lambda entry: entry[0])]


# ---------------------------------------------------------------------------------------------------- signals


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
            return _again(world, folder, stage, f"{name} after {after:.2f} s")

        yield Trial("signals, stages by hand", f"hand-{stage}-{name}-{number}", run)


def _again(world: World, folder: Path, stage: str, what: str) -> tuple[str, str]:
    """Run a stage once more after a trial: it must end well, and with the bytes of the undisturbed project."""
    again = forked([stage], folder)
    if again.code or again.fault():
        return FAIL, f"{what}, then: {again.fault() or again.text[-300:]}"
    return _compare(world, digest(folder), what)


def _compare(world: World, outputs: dict[str, str], what: str) -> tuple[str, str]:
    wrong = [name for name in world.outputs.keys() | outputs.keys() if world.outputs.get(name) != outputs.get(name)]
    return (FAIL, f"{what}: different bytes in {', '.join(sorted(wrong)[:4])}") if wrong else (OK, what)


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
                return FAIL, f"{what}: still at work after {HANG:.0f} s"
            text = log.read_text(errors="replace")
            if "this is a fault of sidpipe" in text:
                return FAIL, f"{what}: {text[-300:]}"
            return _repro(world, folder, what)

        yield Trial("signals, dvc repro", f"repro-{whom}-{name}-{number}", run)


def _quiet(folder: Path, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until no process works in the folder; after `HANG` seconds kill what does, and return False."""
    deadline = time.monotonic() + HANG + 30  # dvc itself, told by SIGINT, ends with its stage
    while (process.poll() is None or working_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = working_in(folder)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return not left


def _repro(world: World, folder: Path, what: str) -> tuple[str, str]:
    """Run `dvc repro` to its end, and compare."""
    try:
        done = subprocess.run(
            ["dvc", "repro"], cwd=folder, env=environment(), capture_output=True, text=True, timeout=180
        )
    except subprocess.TimeoutExpired:
        return FAIL, f"{what}, then dvc repro hangs"
    if done.returncode:
        return FAIL, f"{what}, then: {(done.stdout + done.stderr)[-400:]}"
    return _compare(world, digest(folder), what)


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
            deadline = time.monotonic() + HANG
            while (left := _queue_processes(folder, "stage")) and time.monotonic() < deadline:
                time.sleep(0.5)
            if left:
                return FAIL, f"{what}: a stage is still at work after {HANG:.0f} s"
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
    deadline = time.monotonic() + 5 * HANG
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


# ---------------------------------------------------------------------------------------------------- disks


def full_disks() -> Iterator[Trial]:
    """Give trials where the n-th file cannot be opened, or no file may grow beyond a size; the stage runs again."""
    limits = {f"open-{n}": n for n in range(1, 25)} | {f"size-{n}": n for n in range(16)}
    for stage in STAGES:
        for kind, number in limits.items():

            def run(
                world: World, rng: random.Random, stage: str = stage, kind: str = kind, number: int = number
            ) -> tuple[str, str]:
                folder = copy(world.reference, world.scratch / "disk")
                remove(folder, stage)
                size = int(10 ** rng.uniform(0, 6)) if number else 0
                before = refuse_open(number, folder) if kind.startswith("open") else limit_files(size)
                ended = forked([stage], folder, before=before)
                if fault := ended.fault():
                    return FAIL, fault
                if ended.code not in (0, 1):
                    return FAIL, f"exit code {ended.code}: {ended.text[-200:]}"
                partial = [path.name for path in folder.rglob("*.partial")]
                if partial:
                    return FAIL, f"left {partial[0]}"
                verdict, text = _again(world, folder, stage, f"exit code {ended.code}")
                return (REFUSED if verdict == OK and ended.code else verdict), text

            yield Trial("disk full", f"disk-{stage}-{kind}", run)


# ---------------------------------------------------------------------------------------------------- values


def knobs(world: World) -> Iterator[Trial]:
    """Give a trial per key of params.yaml, which writes every odd value behind it and lets `check` read it."""
    if not importlib.util.find_spec("odd_values"):
        return
    params = yaml.safe_load((world.reference / "params.yaml").read_text())
    keys = [
        (section, key) for section, values in params.items() for key in (values if isinstance(values, dict) else [""])
    ]
    for section, key in keys:

        def run(world: World, rng: random.Random, section: str = section, key: str = key) -> tuple[str, str]:
            folder = copy(world.reference, world.scratch / "knob")
            text = (folder / "params.yaml").read_text().splitlines()
            at = _line_of(text, section, key)
            refused = accepted = 0
            values = odd_values()
            rng.shuffle(values)
            for value in values[:60]:
                changed = [*text[:at], text[at].split(":")[0] + f": {value}", *text[_end(text, at) :]]
                (folder / "params.yaml").write_text("\n".join(changed) + "\n", errors="surrogatepass")
                ended = forked(["check"], folder)
                if fault := ended.fault():
                    return FAIL, f"{value[:60]}: {fault}"
                if ended.seconds > 5:
                    return FAIL, f"{value[:60]}: {ended.seconds:.1f} s"
                refused += ended.code != 0
                accepted += ended.code == 0
            return REFUSED, f"{refused} refused, {accepted} read"

        yield Trial("knobs x 60 values", f"knob-{section}-{key}", run)


def odd_values() -> list[str]:
    """Return the odd values that the tests of params.yaml use."""
    return list(importlib.import_module("odd_values").ODD_VALUES)


def _line_of(text: list[str], section: str, key: str) -> int:
    at = next(i for i, line in enumerate(text) if line.startswith(f"{section}:"))
    return next(i for i in range(at + 1, len(text)) if text[i].startswith(f"  {key}:")) if key else at


def _end(text: list[str], at: int) -> int:
    """Return the line behind a value that may go on in deeper lines."""
    indent = len(text[at]) - len(text[at].lstrip())
    end = at + 1
    while end < len(text) and text[end].strip() and len(text[end]) - len(text[end].lstrip()) > indent:
        end += 1
    return end


# ---------------------------------------------------------------------------------------------------- damage


def damages(world: World) -> Iterator[Trial]:
    """Give a trial per file, kind of damage and reader: 20 positions each."""
    for home, readers in READERS.items():
        path = world.reference / home
        files = [file for file in sorted(path.iterdir()) if file.is_file() and file.name not in ("index.html",)]
        for file in files:
            for command in readers:
                for kind in ("cut", "zeroed", "flipped"):
                    for position in range(20):
                        yield _damage(f"{home}/{file.name}", kind, position, command)


def _text_of(world: World, command: list[str]) -> str:
    """Return what a command prints in the undamaged project."""
    key = " ".join(command)
    if key not in _texts:
        _texts[key] = forked(command, copy(world.reference, world.scratch / "whole")).text
    return _texts[key]


def _damage(name: str, kind: str, position: int, command: list[str]) -> Trial:
    def run(world: World, rng: random.Random) -> tuple[str, str]:
        folder = copy(world.reference, world.scratch / "damage")
        content = bytearray((folder / name).read_bytes())
        at = min(int((position + rng.random()) / 20 * len(content)), len(content) - 1)
        if kind == "cut":
            del content[at:]
        elif kind == "zeroed":
            content[at : at + 64] = bytes(len(content[at : at + 64]))
        else:
            content[at] ^= 1 << rng.randrange(8)
        if bytes(content) == (folder / name).read_bytes():
            return OK, "nothing to damage there"
        whole = _text_of(world, command) if command[0] in SAYS else ""
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        ended = forked(command, folder)
        if fault := ended.fault():
            return FAIL, fault
        if ended.code:
            return (REFUSED, ended.text.strip().splitlines()[0][:120]) if ended.code in (1, 2) else (FAIL, ended.text)
        outputs = digest(folder)
        wrong = [key for key in world.outputs if outputs.get(key) != world.outputs[key] and key != name]
        if wrong or (command[0] in SAYS and ended.text != whole):
            return FAIL, f"silent: other output ({', '.join(wrong[:3]) or 'text'})"
        return OK, "the same output"

    return Trial("data files cut, zeroed, flipped", f"{kind}-{name}-{position}-{command[0]}", run)


# ---------------------------------------------------------------------------------------------------- servers


# Answers that fetch gives up after minutes, not seconds: docs/reliability.md, What is not promised.
OPEN_ANSWERS = ("/negative-chunk",)


def hostile_servers() -> Iterator[Trial]:
    """Give a trial per answer of the hostile server of tests/support."""
    if not importlib.util.find_spec("hostile_server"):
        return
    server = importlib.import_module("hostile_server")
    for path in server.ANSWERS:
        if path in OPEN_ANSWERS:
            continue

        def run(world: World, rng: random.Random, path: str = path) -> tuple[str, str]:  # noqa: ARG001
            folder = copy(world.reference, world.scratch / "fetch")
            shutil.rmtree(folder / "data/raw", ignore_errors=True)
            with server.hostile_server() as address:
                ended = _fresh(["fetch", f"{address}{path}"], folder)
            if fault := ended.fault():
                return FAIL, fault
            return (
                (REFUSED, ended.text.strip().splitlines()[-1][:120]) if ended.code == 1 else (FAIL, ended.text[-200:])
            )

        yield Trial("fetch from a hostile server", f"fetch-{path}", run)


def _fresh(arguments: list[str], folder: Path) -> Ended:
    """Run a command in a new process, because the server's thread would not live on in a forked one."""
    began = time.monotonic()
    log = folder / "torture.log"
    log.touch()
    process = begin([sys.executable, "-m", "pipeline", *arguments], folder, log)
    try:
        code = process.wait(timeout=HANG)
    except subprocess.TimeoutExpired:
        for pid in [process.pid, *children(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        return Ended(process.wait(), log.read_text(errors="replace"), time.monotonic() - began, hung=True)
    return Ended(code, log.read_text(errors="replace"), time.monotonic() - began)
