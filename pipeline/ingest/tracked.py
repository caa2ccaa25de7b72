"""Tell whether the copies of the project that queued experiments run in will have a path, by what git and DVC track."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from shlex import quote


@dataclass(frozen=True)
class Lacking:
    """A path that a queued experiment would not find.

    path: relative to the project. pointer: the .dvc file of the path that git does not track yet; None: there is none.
    """

    path: str
    pointer: str | None

    @property
    def reason(self) -> str:
        if self.pointer:
            return f"git does not track {self.pointer}"
        return f"{self.path} is tracked neither by git nor by DVC"

    @property
    def cure(self) -> str:
        """Return the commands that mend it."""
        pointer = self.pointer or f"{self.path}.dvc"
        add = "" if self.pointer else f"dvc add {quote(self.path)} && "
        return f"{add}git add {quote(pointer)} {quote((Path(pointer).parent / '.gitignore').as_posix())}"


def lacking(root: Path, path: Path) -> Lacking | None:
    """Return what a queued experiment would lack of `path`, None if nothing: DVC copies what git tracks.

    A path outside the project, and a project that is no git repository, lack nothing.
    """
    base = root.resolve()
    target = (root / path).resolve()
    if not target.is_relative_to(base) or target == base:
        return None
    name = target.relative_to(base).as_posix()
    untracked = _names(root, "ls-files", "--others", "-z", "--", name)
    if not untracked:  # an empty folder is in no copy either
        empty = target.is_dir() and git(root, "ls-files", "--", name) == ""
        return Lacking(name, None) if empty else None
    pointers = set(_names(root, "ls-files", "-z", "--", "*.dvc"))
    waiting = None
    for file in untracked:
        if file.endswith(".dvc") or Path(file).name.startswith("."):
            continue
        covers = [f"{part}.dvc" for part in (file, *map(str, Path(file).parents)) if part != "."]
        if pointers.isdisjoint(covers):
            found = [cover for cover in covers if (root / cover).is_file()]
            if not found:
                return Lacking(name, None)
            waiting = waiting or found[0]
    return Lacking(name, waiting) if waiting else None


def git(root: Path, *arguments: str) -> str | None:
    """Return the output of a git command, None if it fails or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _names(root: Path, *arguments: str) -> list[str]:
    return [name for name in (git(root, *arguments) or "").split("\0") if name]
