"""Read finished runs by the names that a user has for them.

A name is a folder with reports (or its ranks.parquet), a file of compact ranks (compact_ranks.py), `workspace`, or
anything that DVC takes for a revision: the name of an experiment, a branch, a tag, a commit. The results of an
experiment lie in DVC's cache, so they are read without a checkout. Beside the ranks, a run has its
metrics and costs, and the parameters that dvc.lock records for it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import GENERATOR, REPORTS
from pipeline.errors import UserError
from pipeline.manifest import not_listed, seal_of
from pipeline.results.compact_ranks import SUFFIX, read_compact
from pipeline.results.predictions import Predictions
from pipeline.results.ranks import (
    DETAILS_FILE,
    METRICS_FILE,
    RANKS_FILE,
    Ranks,
    check_reports,
    read_evaluation,
    read_tested,
)

USAGE = (
    "name two or more: `python -m pipeline compare BASE OTHER`, with folders, experiments or commits; "
    "`dvc exp show` lists the experiments"
)
BASELINE = "HEAD"  # the commit that experiments start from
LOCK = Path("dvc.lock")
FIGURES = (METRICS_FILE, DETAILS_FILE)  # files of reports/ with a run's metrics and costs
Reader = Callable[[Path], bytes]  # the content of a file of a project; FileNotFoundError where it has none


@dataclass(frozen=True)
class Run:
    """A run is one evaluated model.

    ranks: of its test items, or its predictions of what users did with the items that they were shown.
    figures: its metrics and costs; empty where only ranks are at hand. settings: its parameters by dotted name, as
    dvc.lock records them; empty where dvc.lock records another result or none. made: seconds since 1970, when its
    commit or its file was made.
    """

    name: str
    ranks: Ranks | Predictions
    figures: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    made: float = 0.0

    @property
    def identity(self) -> tuple[str, ...]:
        """Return what is equal for the same evaluation under two names."""
        origin = self.ranks.origin
        how = (str(origin.beam), origin.decoding, str(origin.filter_seen), origin.ranking, origin.views)
        return origin.model, origin.splits, *how


def read_run(name: str) -> Run:
    """Read the run of that name.

    Raises:
        UserError: nothing has that name, it has no evaluation, or its reports belong to another model.
    """
    path = Path(name)
    if name == "workspace":
        return _from_folder(name, Path())
    if path.is_dir():
        return _from_folder(name, path)
    if path.suffix == SUFFIX and path.is_file():
        ranks, settings = read_compact(path)
        return Run(name, ranks, settings=settings, made=path.stat().st_mtime)
    if path.is_file():
        return Run(name, read_tested(path.read_bytes(), name), made=path.stat().st_mtime)
    return _from_revision(name)


def runs_here() -> tuple[list[Run], list[str]]:
    """Return the runs of the current commit: its own, those of its experiments, and the workspace's; each once.

    Returns:
        The runs, and lines about those that had to be left out.

    Raises:
        UserError: this is no folder of DVC.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            names = sorted(name for runs in repo.experiments.ls().values() for name, _ in runs)
    except DvcException as error:
        raise UserError(
            f"the experiments cannot be listed: {error}", "without arguments, they are what is compared", USAGE
        ) from None
    found: dict[tuple[str, ...], Run] = {}
    notes = []
    for name in [BASELINE, *names, "workspace"]:
        try:
            run = read_run(name)
        except UserError as error:
            notes.append(_why_not(name, error))
            continue
        found.setdefault(run.identity, run)
    return list(found.values()), notes


def _why_not(name: str, error: UserError) -> str:
    if name == BASELINE:
        return (
            "left out: the result of the commit itself, which has none in DVC's cache; to have it beside the "
            "experiments, commit dvc.lock and reports/ after a run"
        )
    return f"left out: {name} ({error.what.splitlines()[0]})"


def _from_folder(name: str, folder: Path) -> Run:
    """Read a project's folder, or a folder that holds the files of reports/ itself."""
    project = folder if (folder / REPORTS).is_dir() or folder == Path() else folder.resolve().parent
    reports = project / REPORTS if project == folder else folder
    check_reports(reports, project / GENERATOR)

    def read(path: Path) -> bytes:
        return (reports / path.name if path.is_relative_to(REPORTS) else project / path).read_bytes()

    return _run(name, read, read_evaluation(reports), (reports / RANKS_FILE).stat().st_mtime)


def _from_revision(revision: str) -> Run:
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError, resolve_rev

    try:
        with Repo() as repo:
            commit = resolve_rev(repo.scm, revision)
            made = float(repo.scm.resolve_commit(commit).commit_time)
        files = DVCFileSystem(rev=commit)
        content = files.read_bytes((REPORTS / RANKS_FILE).as_posix())
    except (DvcException, SCMError, OSError) as error:
        raise UserError(
            f"no run is called '{revision}': {error}",
            "it is neither a folder, nor a revision or experiment whose reports/ranks.parquet is in DVC's cache",
            "`dvc exp show` lists the experiments; `dvc pull` or `dvc exp pull` brings results of others",
        ) from None

    def read(path: Path) -> bytes:
        try:
            return bytes(files.read_bytes(path.as_posix()))
        except DvcException as error:
            raise FileNotFoundError(str(error)) from None

    return _run(revision, read, read_tested(content, f"{REPORTS / RANKS_FILE} of {revision}"), made)


def _run(name: str, read: Reader, ranks: Ranks | Predictions, made: float) -> Run:
    """Add to the ranks what else the run's project says of them."""
    figures: dict[str, float] = {}
    for file in FIGURES:
        try:
            content = json.loads(read(REPORTS / file))
        except (OSError, ValueError):
            continue
        _check_listed(name, file, content, read)
        figures |= {key: value for key, value in content.items() if isinstance(value, int | float)}
    return Run(name, ranks, figures, _settings(read), made)


def _check_listed(name: str, file: str, content: Mapping[str, Any], read: Reader) -> None:
    """Refuse a run whose details.json lists other files than it has. Raises UserError."""
    for listed_file, digest in seal_of(f"{REPORTS / file} of {name}", content).items():
        if listed_file in (RANKS_FILE, METRICS_FILE, "timings.json"):
            with suppress(OSError):  # what is not there is not mixed
                if hashlib.sha256(read(REPORTS / listed_file)).hexdigest() != digest:
                    raise not_listed(f"{REPORTS / listed_file} of {name}", file, "evaluate")


def _settings(read: Reader) -> dict[str, Any]:
    """Return the parameters in dvc.lock, where it records the very ranks that are here."""
    try:
        stages = yaml.safe_load(read(LOCK))["stages"]
        outs = {out["path"]: out.get("md5") for out in stages["evaluate"]["outs"]}
        ranks = hashlib.md5(read(REPORTS / RANKS_FILE), usedforsecurity=False).hexdigest()
        if outs[(REPORTS / RANKS_FILE).as_posix()] != ranks:
            return {}
        flat: dict[str, Any] = {}
        for stage in stages.values():
            for section, value in stage.get("params", {}).get("params.yaml", {}).items():
                inner = value if isinstance(value, dict) else {None: value}
                flat |= {section if key is None else f"{section}.{key}": leaf for key, leaf in inner.items()}
    except (OSError, LookupError, TypeError, ValueError, AttributeError, yaml.YAMLError):
        return {}
    return flat


def listed(values: Sequence[object]) -> str:
    """Return the values with commas between them."""
    return ", ".join(map(str, values))
