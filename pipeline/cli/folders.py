"""Find the project from any folder below it, and read paths as they were typed.

Every command works in the project's folder, the nearest one upwards with dvc.yaml and params.yaml, because all paths of
the project are relative to it. A path that somebody types for one command is relative to where the command was typed.
Values of params.yaml (`preset --set`) are relative to the project.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MARKS = ("dvc.yaml", "params.yaml")

_typed_in = Path()  # the folder that the command was started in, relative to the current one


def enter_project() -> None:
    """Make the project's folder the current one; without a project above, stay."""
    global _typed_in
    _typed_in = Path()
    with suppress(OSError):  # the current folder may be gone; what needs it says so
        here = Path.cwd()
        for folder in (here, *here.parents):
            if all(os.path.isfile(folder / name) for name in MARKS):
                _typed_in = here.relative_to(folder)
                os.chdir(folder)
                return


def typed_path(path: Path) -> Path:
    """Return a path that was typed, as it is read from the project's folder."""
    return _typed_in / path.expanduser()


def typed_runs(runs: Iterable[str]) -> list[str]:
    """Return the arguments of `compare`, with folders (also in NAME=RUN,RUN) as they are read from the project's."""
    return [_arm(run) for run in runs]


def _arm(run: str) -> str:
    name, equals, members = run.partition("=")
    if not equals:
        return _folder(run)
    return name + equals + ",".join(_folder(member) for member in members.split(","))


def _folder(run: str) -> str:
    path = typed_path(Path(run))
    return str(path) if run and path.exists() and _typed_in != Path() else run
