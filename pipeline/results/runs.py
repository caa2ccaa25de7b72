"""Read finished runs by the names that a user has for them, and group them into the arms of a comparison.

A name is a folder with reports (or its ranks.parquet), `workspace`, or anything that DVC takes for a revision: the name
of an experiment, a branch, a tag, a commit. The results of an experiment lie in DVC's cache, so they are read without
a checkout.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.artifacts import GENERATOR, REPORTS
from pipeline.errors import UserError
from pipeline.printing import say
from pipeline.results.ranks import RANKS_FILE, Ranks, check_reports

USAGE = (
    "name two or more: `python -m pipeline compare BASE OTHER`, with folders, experiments or commits; "
    "`dvc exp show` lists the experiments"
)


@dataclass(frozen=True)
class Run:
    """A run is one evaluated model."""

    name: str
    ranks: Ranks

    @property
    def identity(self) -> tuple[str, ...]:
        """Return what is equal for the same evaluation under two names."""
        origin = self.ranks.origin
        return origin.model, origin.splits, str(origin.beam), origin.decoding, str(origin.filter_seen)


@dataclass(frozen=True)
class Arm:
    """An arm holds the runs of one side of a comparison: they differ in their seed only, and are sorted by it."""

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.ranks.origin.seed for run in self.runs)


def arms_of(arguments: Sequence[str]) -> list[Arm]:
    """Return the arms that the command line names, in its order; the first one is the reference.

    `NAME=RUN,RUN` is an arm as it stands. All other runs are grouped into arms of runs that are equal in all but the
    seed. Without arguments, the experiments of the current commit and the workspace are compared, with `full` as the
    reference.

    Raises:
        UserError: a run cannot be found or read, an arm has one seed twice, or the runs cannot be compared.
    """
    # 1. Group the runs: `a=x,y` under ("a",), others under (strategy, dataset, recipe).
    groups: dict[tuple[str, ...], list[Run]] = {}
    for argument in arguments:
        name, named, members = argument.partition("=")
        if named:
            groups.setdefault((name,), []).extend(read_run(member) for member in members.split(","))
        else:
            _group(groups, read_run(argument))
    # Without arguments: all runs here, those of `full` first, so that its arm is the reference.
    for run in [] if arguments else sorted(_here(), key=lambda run: run.ranks.origin.strategy != "full"):
        _group(groups, run)
    # 2. Make arms of the groups, and check that they can be compared.
    arms = [_arm(name, runs) for name, runs in zip(_names(groups), groups.values(), strict=True)]
    if len(arms) < 2:
        found = f"one arm: {arms[0].name}, seed {_listed(arms[0].seeds)}" if arms else "no run"
        raise UserError(f"there is nothing to compare, only {found}", "a comparison needs two arms", USAGE)
    _check_comparable([run for arm in arms for run in arm.runs])
    return arms


def read_run(name: str) -> Run:
    """Read the run of that name.

    Raises:
        UserError: nothing has that name, it has no evaluation, or its reports belong to another model.
    """
    path = Path(name)
    if name == "workspace":
        return Run(name, _from_folder(REPORTS))
    if path.is_dir():
        return Run(name, _from_folder(path / REPORTS if (path / REPORTS).is_dir() else path))
    if path.is_file():
        return Run(name, Ranks.read(path))
    return Run(name, _from_revision(name))


def _from_folder(reports: Path) -> Ranks:
    check_reports(reports, reports.resolve().parent / GENERATOR)
    return Ranks.read(reports / RANKS_FILE)


def _from_revision(revision: str) -> Ranks:
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        with dvc.api.open((REPORTS / RANKS_FILE).as_posix(), rev=revision, mode="rb") as file:
            content = file.read()
    except (DvcException, OSError) as error:
        raise UserError(
            f"no run is called '{revision}': {error}",
            "it is neither a folder, nor a revision or experiment whose reports/ranks.parquet is in DVC's cache",
            "`dvc exp show` lists the experiments; `dvc pull` or `dvc exp pull` brings results of others",
        ) from None
    return Ranks.from_bytes(content, f"{REPORTS / RANKS_FILE} of {revision}")


def _here() -> Iterator[Run]:
    """Give each experiment of the current commit and the workspace once, and print which had to be left out."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            names = [name for runs in repo.experiments.ls().values() for name, _ in runs]
    except DvcException as error:
        raise UserError(
            f"the experiments cannot be listed: {error}", "without arguments, they are what is compared", USAGE
        ) from None
    known = set()
    for name in [*sorted(names), "workspace"]:
        try:
            run = read_run(name)
        except UserError as error:
            say(f"left out: {name} ({error.what})")
            continue
        if run.identity not in known:
            known.add(run.identity)
            yield run


def _group(groups: dict[tuple[str, ...], list[Run]], run: Run) -> None:
    """Add the run to the group of runs from which it differs in the seed only."""
    origin = run.ranks.origin
    groups.setdefault((origin.strategy, origin.dataset, origin.recipe), []).append(run)


def _names(groups: dict[tuple[str, ...], list[Run]]) -> list[str]:
    """Name each arm as the user said, or by its strategy, or by its runs where two arms share a strategy."""
    shared = Counter(key[0] for key in groups)
    return [key[0] if shared[key[0]] == 1 else "+".join(run.name for run in runs) for key, runs in groups.items()]


def _arm(name: str, runs: list[Run]) -> Arm:
    """Make an arm of its runs. Raises UserError where one seed comes twice."""
    seeds = Counter(run.ranks.origin.seed for run in runs)
    twice = [seed for seed, count in seeds.items() if count > 1]
    if twice:
        names = [run.name for run in runs if run.ranks.origin.seed in twice]
        raise UserError(
            f"{_listed(names)} have the same strategy, settings of training and seed",
            f"in one arm ({name}), runs differ in their seed only",
            f"name each run once; to set them against each other: {names[0]}={names[0]} {names[1]}={names[1]}",
        )
    return Arm(name, tuple(sorted(runs, key=lambda run: run.ranks.origin.seed)))


def _check_comparable(runs: list[Run]) -> None:
    """Check that the runs were evaluated alike, on the same users and items. Raises UserError where they were not."""
    first = runs[0]
    for run in runs[1:]:
        for field in ("dataset", "decoding", "beam", "filter_seen"):
            mine = getattr(first.ranks.origin, field)
            theirs = getattr(run.ranks.origin, field)
            if mine != theirs:
                raise UserError(
                    f"{first.name} has {field} {mine}, {run.name} has {theirs}",
                    "a difference between them would not be one between models",
                    "compare runs of one dataset, evaluated by the same settings",
                )
        for column in ("user_id", "item_id"):
            if not np.array_equal(first.ranks.users[column], run.ranks.users[column]):
                raise UserError(
                    f"{first.name} and {run.name} were tested on different "
                    f"{'users' if column == 'user_id' else 'test items'}",
                    "differences are taken user by user",
                    "compare runs with the same log and split (split.ties=source gives every seed the same split)",
                )


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
