"""Say in plain lines what the machine refused: memory, disk, permission.

The errors of libraries are known by name and text, so that this file loads none of them.
"""

import errno
import re
import resource
import traceback
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# What libraries write where they raise an error of their own kind.
DISK_WORDS = re.compile(r"no space left on device|file too large|disk quota exceeded|disk is full", re.IGNORECASE)
FORBIDDEN_WORDS = re.compile(r"permission denied|read-only file system", re.IGNORECASE)
MEMORY_WORDS = re.compile(
    r"out of memory|cannot allocate memory|can't allocate memory|unable to allocate|failed to allocate|std::bad_alloc|"
    r"bad allocation|failed to map segment|can't start new thread|resource temporarily unavailable",
    re.IGNORECASE,
)
LOWER = {  # what makes a command need less memory
    "ingest": "lower ingest.memory_limit, or run it on a machine with more memory",
    "embed": "lower embed.batch_tokens (encoders text, multimodal) or embed.dimensions (tfidf)",
    "count": "lower evaluate.cooccurrence_window or evaluate.cooccurrence_neighbours",
    "quantize": "lower quantize.batch_items or quantize.codes",
    "train": "raise train.accumulate, or lower train.batch_tokens or the sizes in backbone",
    "dense": "lower dense.batch_items or dense.dim",
    "evaluate": "lower evaluate.batch_users or evaluate.beam",
    "gradients": "lower train.batch_tokens",
    "recommend": "lower -k",
}
ADDRESS_SPACE = 4 << 30  # bytes; stages of two threads crashed or waited for ever with 1,000 to 2,000 MiB
TRACEBACK = Path(".sidpipe/traceback.txt")


def explain_fault(error: BaseException, command: str) -> UserError | None:
    """Return what the machine refused in the words of a UserError; None where the error is of another kind.

    Args:
        command: name of the command that failed, which decides the advice.
    """
    for cause in _chain(error):
        text = str(cause).strip()
        if _is_memory(cause, text):
            return UserError(
                "out of memory" + (f": {_first_line(text)}" if text else ""),
                fix=LOWER.get(command, "end other programs, or run it on a machine with more memory"),
            )
        number = cause.errno if isinstance(cause, OSError) else None
        if number in FULL_DISK or (_foreign(cause) and DISK_WORDS.search(text)):
            return UserError(
                f"the disk is full or a file may not grow further{_where(cause)}: {_first_line(_reason(cause))}",
                "the command stopped; each file is whole, of this run or of an earlier one",
                "free some space, then run the same command again",
            )
        if number in FORBIDDEN or (_foreign(cause) and FORBIDDEN_WORDS.search(text)):
            return UserError(
                f"not allowed{_where(cause)}: {_first_line(_reason(cause))}",
                fix="correct the permissions of the file and its folder, then run the same command again",
            )
    if isinstance(error, OSError):
        return UserError(
            f"the machine refused{_where(error)}: {_first_line(_reason(error))}",
            fix="mend that, then run the same command again; --debug shows where it happened",
        )
    return None


def check_address_space() -> None:
    """Refuse a limit (`ulimit -v`) in which numeric libraries wait for ever, or crash, while they are loaded.

    Raises:
        UserError: this process may have less than `ADDRESS_SPACE`.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= limit < ADDRESS_SPACE:
        raise UserError(
            f"out of memory: this process may have {limit >> 20:,} MiB of address space, and needs "
            f"{ADDRESS_SPACE >> 20:,} MiB",
            "with less, numeric libraries may wait for ever while they are loaded; most of it is never used as memory",
            "raise the limit (`ulimit -v unlimited`); what bounds memory itself is a cgroup, as in "
            "`systemd-run --user --scope -p MemoryMax=2G COMMAND`",
        )


def report_bug(error: BaseException) -> UserError:
    """Write the traceback of an error that nobody foresaw into a file, and return the lines for the terminal."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "pipeline" in Path(frame.filename).parts] or list(frames)
    at = f" ({'/'.join(Path(inside[-1].filename).parts[-3:])}:{inside[-1].lineno})" if inside else ""
    try:
        TRACEBACK.parent.mkdir(exist_ok=True)
        TRACEBACK.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        saved = f"{TRACEBACK} has the traceback"
    except OSError:
        saved = "--debug shows the traceback"
    return UserError(
        f"{type(error).__name__}: {_first_line(str(error))}{at}",
        "this is a fault of sidpipe, not of your settings",
        f"please report it; {saved}",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give the error and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _is_memory(error: BaseException, text: str) -> bool:
    """Tell whether an error of Python, NumPy, Arrow, DuckDB, torch or the loader of libraries means memory."""
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "OutOfMemoryException"):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError | ImportError | SystemError) and bool(MEMORY_WORDS.search(text))


def _foreign(error: BaseException) -> bool:
    """Tell whether a library raised the error, whose text then says what errno would."""
    home = type(error).__module__.split(".")[0]
    return home not in ("builtins", "pipeline") or type(error) in (OSError, RuntimeError)


def _where(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" ({name})" if name else ""


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _first_line(text: str) -> str:
    """Return the first line of a message, cut where a library writes a page."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= 200 else line[:199] + "…"
