"""Define a trial, and the verdict on a stage that runs again after it."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.torture.process import forked
from benchmarks.torture.project import digest

OK = "ok"
REFUSED = "refused"
FAIL = "FAIL"


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


def again(world: World, folder: Path, stage: str, what: str) -> tuple[str, str]:
    """Run a stage once more after a trial: it must end well, and with the bytes of the undisturbed project."""
    ended = forked([stage], folder)
    if ended.code or ended.fault():
        return FAIL, f"{what}, then: {ended.fault() or ended.text[-300:]}"
    return compared(world, digest(folder), what)


def compared(world: World, outputs: dict[str, str], what: str) -> tuple[str, str]:
    """Return the verdict on outputs: they must be those of the undisturbed project."""
    wrong = [name for name in world.outputs.keys() | outputs.keys() if world.outputs.get(name) != outputs.get(name)]
    return (FAIL, f"{what}: different bytes in {', '.join(sorted(wrong)[:4])}") if wrong else (OK, what)
