"""End a command in order when it is told to stop: by Ctrl-C (SIGINT), SIGTERM or SIGHUP, or because its DVC has ended.

A signal raises `Stopped` in the main thread. Inside `deferred()` it only sets a flag, which the training loop reads
after each step, so that a checkpoint is saved first. A thread watches over both: it ends a process that does not come
to an end within `GRACE` seconds, and it tells a stage to stop whose `dvc` process is gone. This file loads nothing
heavy, because a signal that comes before `watch` gets Python's answer, a traceback.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

GRACE = 10.0  # seconds in which a process that was told to stop must end
SAME = 1.0  # seconds in which a second signal is the first one again: a terminal and a launcher both send it
LOOK = 0.5  # seconds between two looks at the dvc process
NAMES = {signal.SIGINT: "Ctrl-C (SIGINT)", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP, its terminal closed"}


class Stopped(BaseException):
    """The command was told to stop. It is no `Exception`, so that no library takes it for a fault and goes on.

    Attributes:
        stands: what of the work is saved; empty: what the command line says of each command.
    """

    def __init__(self, stands: str = ""):
        super().__init__(stands)
        self.stands = stands


class _Request:
    """A request to stop, as far as this process knows of one."""

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0: none came
        self.since = 0.0  # when the first one came
        self.cause = ""  # in place of the signal's name
        self.deferring = False
        self.ending = False  # the command ends by itself and says why
        self.unwinding = False  # `Stopped` was raised
        self.lost = False  # `Stopped` was raised where Python drops exceptions, so it must be raised again
        self.deadline = 0.0  # when the process is ended at once; 0: never


_request = _Request()


def requested() -> bool:
    """Return whether the command was told to stop."""
    return _request.number != 0


def reason() -> str:
    """Return who told the command to stop, such as `Ctrl-C (SIGINT)`."""
    return _request.cause or NAMES[signal.Signals(_request.number)]


def exit_code() -> int:
    """Return the exit code of a command that a signal ended: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + (_request.number or signal.SIGTERM)


@contextmanager
def deferred() -> Iterator[None]:
    """Let a first signal set the flag of `requested` only; a second one, a moment later, raises `Stopped`.

    Raises:
        Stopped: at the end, where a signal came and the caller did not raise it.
    """
    _request.deferring = True
    try:
        yield
    finally:
        _request.deferring = False
    if requested():
        _request.unwinding = True
        raise Stopped


def ends_by_itself() -> None:
    """Raise nothing for later signals, because the command ends already and is about to say why."""
    _request.ending = True


@contextmanager
def watch() -> Iterator[None]:
    """Answer signals by `Stopped`, and by the end of the process where it does not come in time.

    A signal that the process was started with as ignored (nohup, a background job of sh) stays ignored.
    """
    global _request
    _request = _Request()
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets the main thread alone answer signals
        return
    before = {number: signal.getsignal(number) for number in NAMES}
    read, write = os.pipe()
    os.set_blocking(write, False)
    waker = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    hook = sys.unraisablehook
    sys.unraisablehook = _dropped
    over = threading.Event()
    threading.Thread(target=_watch, args=(read, over, dvc_process()), daemon=True, name="stopping").start()
    for number, handler in before.items():
        if handler is not signal.SIG_IGN or number == signal.SIGTERM:
            signal.signal(number, _handle)
    try:
        yield
    finally:
        ends_by_itself()
        sys.unraisablehook = hook
        signal.set_wakeup_fd(waker)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write)
        over.set()
        _request = _Request()


def leave(code: int) -> None:
    """End the process without its last tasks, such as waiting for threads, which may take for ever."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _handle(number: int, _: FrameType | None) -> None:
    """Note the signal, and raise `Stopped` unless the main thread asked to be told later."""
    now = time.monotonic()
    if _request.ending:
        _request.number = _request.number or number
        _request.deadline = _request.deadline or now + GRACE
        return
    if not _request.number:
        _request.number = number
        _request.since = now
        if _request.deferring:
            tell(f"told to stop by {reason()}: the step is finished and saved first; once more stops at once")
            return
    elif not _request.lost and now - _request.since < SAME:
        return
    elif _request.unwinding and not _request.lost:
        _end()
    _request.lost = False
    _request.unwinding = True
    _request.deadline = _request.deadline or now + GRACE
    raise Stopped


def _dropped(unraisable: "sys.UnraisableHookArgs") -> None:
    """Let the thread raise `Stopped` again where Python dropped it, as in a destructor; print everything else."""
    if issubclass(unraisable.exc_type, Stopped):
        _request.lost = True
    else:
        sys.__unraisablehook__(unraisable)


def _watch(read: int, over: threading.Event, dvc: tuple[int, str] | None) -> None:
    """Send SIGTERM when the dvc process is gone, and end this process at its deadline."""
    while not over.is_set():
        if select.select([read], [], [], LOOK)[0]:
            came = [number for number in os.read(read, 64) if number in NAMES]
            # The main thread may be inside a library and learn of the signal late.
            now = time.monotonic()
            again = requested() and now - _request.since > SAME
            if came and (again or not _request.deferring):
                _request.deadline = _request.deadline or now + GRACE
        if _request.lost:
            os.kill(os.getpid(), _request.number)
        if dvc and started(dvc[0]) != dvc[1]:
            _request.cause = f"the end of its dvc process {dvc[0]}"
            dvc = None
            os.kill(os.getpid(), signal.SIGTERM)
        if _request.deadline and time.monotonic() > _request.deadline:
            _request.number = _request.number or signal.SIGTERM
            _end()
    os.close(read)


def _end() -> None:
    """End the process at once."""
    tell(f"stopped at once by {reason()}; files that were complete stay")
    os._exit(exit_code())


def tell(text: str) -> None:
    """Write a line to stderr, also inside a signal handler and where nobody reads."""
    with suppress(OSError):
        os.write(2, f"{command_name()}: {text}\n".encode())


def command_name() -> str:
    """Return the command's name on the command line, such as `train`."""
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "sidpipe")


# ---------------------------------------------------------------------------------------------------- dvc


def dvc_process(proc: Path = Path("/proc"), environment: Any = os.environ) -> tuple[int, str] | None:
    """Return pid and start time of the dvc process that runs this stage; None in a stage that was started by hand.

    DVC sets DVC_STAGE for its stage alone. So the nearest ancestor without this value is DVC, whatever its name, and
    however many shells and launchers are between.

    Args:
        proc: the folder where Linux lists processes; elsewhere nothing is found.
        environment: the variables of this process.
    """
    stage = environment.get("DVC_STAGE")
    if not stage:
        return None
    pid = os.getppid()
    while pid > 1:
        try:
            variables = (proc / str(pid) / "environ").read_bytes().split(b"\0")
            fields = _fields(proc, pid)
        except OSError:
            return None
        if f"DVC_STAGE={stage}".encode() not in variables:
            return pid, fields[19]
        pid = int(fields[1])
    return None


def started(pid: int, proc: Path = Path("/proc")) -> str:
    """Return when a process was started, in ticks since boot; "" where it has ended."""
    try:
        fields = _fields(proc, pid)
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _fields(proc: Path, pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name: state, parent, ..., start time at index 19."""
    return (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
