"""Stage check: a mistake in params.yaml is refused while the outputs of all other stages are still there.

DVC removes what a stage wrote before it runs the stage again. A mistake that a later stage found would therefore cost
results that took hours. So `check` reads the whole of params.yaml, and every other stage depends on the file that it
writes: DVC runs it first, and touches no other stage when it fails. The content of that file never changes. Hence a new
value runs this stage, which takes a moment, and of the others only those that read the value.
"""

import os
from pathlib import Path
from typing import Protocol

from pipeline.errors import RESTORE, UserError

CHECKED = Path("data/checked.txt")
INTERACTIONS = Path("data/interactions")  # what ingest writes: paths below it need not be there yet
LINE = "All of params.yaml was valid. This line never changes, so that no stage runs again because of it.\n"


class IngestPaths(Protocol):
    """The paths of `ingest:`."""

    @property
    def path(self) -> str: ...


class EmbedPaths(Protocol):
    """The paths of `embed:`."""

    @property
    def path(self) -> str: ...

    @property
    def images(self) -> str: ...


class CheckParams(Protocol):
    """What the stage itself looks at. Whoever holds parameters has checked their values: see `pipeline.config`."""

    @property
    def seed(self) -> int: ...

    @property
    def strategy(self) -> str: ...

    @property
    def dataset(self) -> str: ...

    @property
    def ingest(self) -> IngestPaths: ...

    @property
    def embed(self) -> EmbedPaths: ...


def run(params: CheckParams, *, output: Path = CHECKED) -> None:
    """Write the constant line. That `params` exist says that all values of params.yaml are valid.

    Raises:
        UserError: a path that a stage reads from is not there.
    """
    _check_paths(params)
    output.parent.mkdir(parents=True, exist_ok=True)
    # DVC may have made the output a link into its cache, which must not be written through. `artifacts.write_bytes`
    # does the same, but its file loads NumPy, and this stage has to answer at once.
    written = output.with_name(f"{output.name}.new")
    written.write_text(LINE, encoding="utf-8")
    os.replace(written, output)
    print(f"check: params.yaml is valid; strategy {params.strategy}, dataset {params.dataset}, seed {params.seed}")


def _check_paths(params: CheckParams) -> None:
    """Every path in the dependencies of dvc.yaml that params.yaml names must exist."""
    named = {"ingest.path": params.ingest.path, "embed.path": params.embed.path, "embed.images": params.embed.images}
    missing = [
        f"{key} {path} is not here"
        for key, path in named.items()
        if not Path(path).is_relative_to(INTERACTIONS) and not Path(path).exists()
    ]
    if missing:
        raise UserError(
            "\n".join(missing),
            "a stage reads from there; a published log comes by `python -m pipeline fetch`",
            RESTORE,
        )
