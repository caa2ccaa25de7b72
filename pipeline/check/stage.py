"""Stage check: refuse a mistake in params.yaml while the outputs of all other stages are still there.

DVC removes the outputs of a stage before it runs the stage again, so a mistake that a later stage found would cost
results that took hours. Therefore `check` reads the whole of params.yaml, and every other stage depends on the file
that `check` writes: DVC runs `check` first, and touches no other stage if `check` fails. The content of that file never
changes. Hence a new value runs this stage, which takes a moment, and of the others only those that read the value.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pipeline.errors import RESTORE, UserError
from pipeline.printing import say

CHECKED = Path("data/checked.txt")
FindLog = Callable[[str, str, str], object]  # (dataset, ingest.path, ingest.files) -> the raw files, or a UserError
INTERACTIONS = Path("data/interactions")  # ingest writes this folder, so paths below it need not exist yet
LINE = "All of params.yaml was valid. This line never changes, so that no stage runs again because of it.\n"


class IngestPaths(Protocol):
    """`IngestPaths` declares the paths in section `ingest` of params.yaml."""

    @property
    def path(self) -> str: ...

    @property
    def files(self) -> str: ...


class EmbedPaths(Protocol):
    """`EmbedPaths` declares the paths in section `embed` of params.yaml."""

    @property
    def path(self) -> str: ...

    @property
    def images(self) -> str: ...


class SplitLimits(Protocol):
    """`SplitLimits` declares what is read of section `split`."""

    @property
    def max_history(self) -> int: ...


class QuantizeShape(Protocol):
    """`QuantizeShape` declares what is read of section `quantize`."""

    @property
    def levels(self) -> int: ...

    @property
    def collisions(self) -> str: ...


class BackboneShape(Protocol):
    """`BackboneShape` declares what is read of section `backbone`."""

    @property
    def over_items(self) -> bool: ...

    def positions_per_item(self, levels: int) -> int: ...


class TrainLimits(Protocol):
    """`TrainLimits` declares what is read of section `train`."""

    def check_room(self, max_history: int, per_item: int) -> None: ...


class CheckParams(Protocol):
    """`CheckParams` declares what the stage itself reads of params.yaml.

    `pipeline.config` checks all values when it builds the parameters.
    """

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

    @property
    def split(self) -> SplitLimits: ...

    @property
    def quantize(self) -> QuantizeShape: ...

    @property
    def backbone(self) -> BackboneShape: ...

    @property
    def train(self) -> TrainLimits: ...


def run(params: CheckParams, *, find_log: FindLog | None = None, output: Path = CHECKED) -> None:
    """Check the paths and the budget of a step, and write the constant line.

    All other values were checked when `params` was built.

    Args:
        find_log: what ingest finds the raw files with; None: they are not looked for.

    Raises:
        UserError: a path that a stage reads does not exist, the raw log is not found there, or the longest history is
            too long for a training step.
    """
    _check_paths(params)
    if find_log:
        _check_log(params, find_log)
    _check_budget(params)
    output.parent.mkdir(parents=True, exist_ok=True)
    # DVC may have made the output a link into its cache, and writing through the link would change the cache; so a new
    # file replaces the link. `artifacts.write_bytes` does the same, but its file loads NumPy, which takes a moment.
    written = output.with_name(f"{output.name}.new")
    written.write_text(LINE, encoding="utf-8")
    os.replace(written, output)
    say(f"check: params.yaml is valid; strategy {params.strategy}, dataset {params.dataset}, seed {params.seed}")


def _check_paths(params: CheckParams) -> None:
    """Refuse paths of params.yaml that dvc.yaml lists as dependencies and that do not exist."""
    named = {"ingest.path": params.ingest.path, "embed.path": params.embed.path, "embed.images": params.embed.images}
    missing = [
        f"{key} {path} is not here"
        for key, path in named.items()
        if not Path(path).is_relative_to(INTERACTIONS) and not Path(path).exists()
    ]
    if missing:
        raise UserError(
            "\n".join(missing),
            "a stage reads this path; `python -m pipeline fetch` downloads the log of a public dataset",
            RESTORE,
        )


def _check_log(params: CheckParams, find_log: FindLog) -> None:
    """Refuse an ingest.path without the raw log; ingest simulates that of the demo."""
    if params.dataset != "demo" and not Path(params.ingest.path).is_relative_to(INTERACTIONS):
        find_log(params.dataset, params.ingest.path, params.ingest.files)


def _check_budget(params: CheckParams) -> None:
    """Refuse a step of training, or a padded row, that the longest history does not fit into.

    Train would find it hours later.
    """
    levels = 1 if params.backbone.over_items else params.quantize.levels + (params.quantize.collisions == "digit")
    per_item = params.backbone.positions_per_item(levels)
    params.train.check_room(params.split.max_history, per_item)
