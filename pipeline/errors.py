"""The one exception that users are meant to see, and helpers for its text."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from pipeline.printing import hide_secrets, shown

RESTORE = "mend the value, then `dvc repro`; what DVC removed comes back from its cache"


class UserError(Exception):
    """An error that the user can correct: what is wrong, why it matters, and what to do about it.

    The command line prints the three parts and exits with code 1, without a traceback unless `--debug` is given. A URL
    in them loses its user name and password. Text from data goes through `printing.shown` first: a part may have
    several lines, and only the code says where they end.
    """

    def __init__(self, what: str, why: str = "", fix: str = ""):
        self.what, self.why, self.fix = (hide_secrets(part) for part in (what, why, fix))
        super().__init__("\n".join(part for part in (self.what, self.why, self.fix) if part))


class LostProcessError(UserError):
    """Another of the processes that work together under torchrun has ended, so this one cannot go on."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Name the closest valid word and list all valid words: `did you mean 'rastp'? (valid: full, rastp)`."""
    word, valid = shown(word), sorted(shown(name) for name in valid)
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}(valid: {', '.join(valid)})"


def unreadable(path: Path, error: Exception) -> UserError:
    """Return the error of a file between stages whose content cannot be read."""
    return UserError(
        f"{path} cannot be read: {shown(error)}",
        "the file is damaged or was cut short",
        "delete the file and run `dvc checkout`, or `dvc repro` to make it again",
    )
