"""Stage check: a mistake in params.yaml is refused while the outputs of all other stages are still there.

DVC removes what a stage wrote before it runs the stage again. A mistake that a later stage found would therefore cost
results that took hours. So `check` reads the whole of params.yaml, and every other stage depends on the file that it
writes: DVC runs it first, and touches no other stage when it fails. The content of that file never changes. Hence a new
value runs this stage, which takes a moment, and of the others only those that read the value.
"""

from pathlib import Path
from typing import Protocol

CHECKED = Path("data/checked.txt")
LINE = "All of params.yaml was valid. This line never changes, so that no stage runs again because of it.\n"


class CheckParams(Protocol):
    """What the stage tells of params.yaml. Whoever holds parameters has checked them: see `pipeline.config`."""

    @property
    def seed(self) -> int: ...

    @property
    def strategy(self) -> str: ...

    @property
    def dataset(self) -> str: ...


def run(params: CheckParams, *, output: Path = CHECKED) -> None:
    """Write the constant line. That `params` exist says that all of params.yaml is valid."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(LINE, encoding="utf-8")
    print(f"check: params.yaml is valid; strategy {params.strategy}, dataset {params.dataset}, seed {params.seed}")
