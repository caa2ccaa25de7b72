"""Run one command of the package in a forked child, which has the libraries loaded, or any command as a new process."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.torture.project import environment


@dataclass
class Limits:
    """Time limits of this run of the torture, which grow with the number of trials per core."""

    hang: float = 30.0  # seconds after which a command that should have ended hangs


LIMITS = Limits()


@dataclass(frozen=True)
class Ended:
    """An end of a command: exit code (negative: by that signal), what it printed, seconds, and whether it hung."""

    code: int
    text: str
    seconds: float
    hung: bool = False

    def fault(self) -> str:
        """Return what no command may do, or "" where it did nothing of the kind."""
        if self.hung:
            return f"hang: not ended after {LIMITS.hang:.0f} s"
        for words in ("Traceback", "this is a fault of sidpipe", "Fatal Python error", "terminate called"):
            if words in self.text:
                return f"{words}: {self.text.strip().splitlines()[-1][:200]}"
        return f"ended by signal {-self.code}" if -self.code in (signal.SIGABRT, signal.SIGSEGV) else ""


def preload(*, tracking: bool = True) -> None:
    """Load what the stages load, so that a forked child begins at once; `tracking`: MLflow too."""
    import faiss  # noqa: F401
    import sklearn.decomposition
    import sklearn.feature_extraction.text  # noqa: F401

    import pipeline.cli
    import pipeline.dense.retriever
    import pipeline.embed.stage
    import pipeline.embed.tfidf
    import pipeline.evaluate.explain
    import pipeline.evaluate.recommend
    import pipeline.evaluate.stage
    import pipeline.ingest.demo
    import pipeline.ingest.stage
    import pipeline.quantize.lookup
    import pipeline.quantize.stage
    import pipeline.split.stage
    import pipeline.train.stage

    if tracking:
        import pipeline.results.mlflow_store
        import pipeline.track.stage  # noqa: F401


def forked(
    arguments: list[str],
    folder: Path,
    *,
    kill: tuple[int, float] | None = None,
    before: Callable[[], None] | None = None,
) -> Ended:
    """Run `python -m pipeline ARGUMENTS` in `folder`.

    Args:
        kill: a signal, and the seconds after which it is sent.
        before: called in the child, such as to set a limit.
    """
    # A pipe, because a limit on the size of files would be one on what is printed into a file.
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.set_blocking(read, False)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the child answers it as a new process does
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(arguments, folder, write, before)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    os.close(write)
    code = None
    sent = hung = False
    while code is None:
        done, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.monotonic() - began
        if done:
            code = os.waitstatus_to_exitcode(status)
        elif kill and not sent and seconds >= kill[1]:
            os.kill(pid, kill[0])
            sent = True
        elif seconds > LIMITS.hang + (kill[1] if kill else LIMITS.hang):
            os.kill(pid, signal.SIGKILL)
            hung = True
        time.sleep(0.002)
    with open(read, "rb") as output:
        text = (output.read() or b"").decode(errors="replace")
    return Ended(code, text, seconds, hung)


def _child(arguments: list[str], folder: Path, output: int, before: Callable[[], None] | None) -> None:
    """Become the command; never returns."""
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        os.setsid()
        os.chdir(folder)
        for name in list(os.environ):
            if name.startswith(("DVC_", "MLFLOW_URI")):
                del os.environ[name]
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["pipeline", *arguments]
        sys.unraisablehook = sys.__unraisablehook__
        from pipeline.__main__ import start

        if before:
            before()
        start()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 98
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 97
        os._exit(code)


def limit_files(size: int) -> Callable[[], None]:
    """Return what lets every file of the child grow to `size` bytes only, like a disk that fills up."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def refuse_open(number: int, folder: Path) -> Callable[[], None]:
    """Return what lets the child fail to open, rename or make a file below `folder`, at the `number`-th attempt."""

    def install() -> None:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event not in ("open", "os.rename", "os.mkdir"):
                return
            if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            path = arguments[0]
            if not isinstance(path, str | Path) or not Path(path).absolute().is_relative_to(folder):
                return
            seen += 1
            if seen == number:
                raise OSError(28, "No space left on device", str(path))

        sys.addaudithook(hook)

    return install


def begin(command: list[str], folder: Path, log: Path, package: Path | None = None) -> "subprocess.Popen[bytes]":
    """Start a command as a user does, in a session of its own; what it prints goes to `log`.

    Args:
        package: the folder of the package, for a copy that has none; None: the copy's.
    """
    variables = environment() | ({"PYTHONPATH": str(package)} if package else {})
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=folder, env=variables, stdout=file, stderr=file, start_new_session=True)


def children(pid: int) -> list[int]:
    """Return all descendants of a process."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, waiting = [], [pid]
    while waiting:
        some = parents.get(waiting.pop(), [])
        found += some
        waiting += some
    return found


def working_in(folder: Path) -> list[int]:
    """Return the processes whose current folder is `folder` or below, but not this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            here = Path(os.readlink(path / "cwd"))
        except OSError:
            continue
        if here.is_relative_to(folder) and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found
