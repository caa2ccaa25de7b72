"""Publish a model into a folder that servers read: whole, in one rename, with the version before kept.

    DIR/versions/000007-0a1b2c3d/   an MLflow model, with published.json
    DIR/current                     a symbolic link to one of them: what is served
    DIR/promotion.json              only while alias and link move together (`Promotion`)

`dvc repro` and `dvc exp run` empty models/generator for a while, so a server reads DIR/current instead. A version that
was promoted has a version in MLflow's registry too. The alias and the link cannot move at one instant, so the intent is
written before the first of them moves: after a kill, the next command that looks at the folder completes both.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import GENERATOR, REPORTS, SPLITS, Splits, read_json, write_json
from pipeline.errors import UserError
from pipeline.generator import load_generator
from pipeline.locks import alone
from pipeline.printing import say
from pipeline.results.ranks import RANKS_FILE, Ranks, check_fit, check_reports, drops_seen, model_hash
from pipeline.results.registry import Registered, crown

CURRENT = "current"
VERSIONS = "versions"
FACTS = "published.json"
INTENT = "promotion.json"
MODEL = Path("artifacts/generator")  # of a published MLflow model
RANKS = Path("artifacts") / RANKS_FILE


@dataclass(frozen=True)
class Published:
    """A published version is a folder of `versions`.

    model: content hash of its models/generator, or of all that answers (`Origin.served`). previous: the version before,
    or None. registered: its version in MLflow's registry; None: it was published without one.
    """

    version: str
    model: str
    previous: str | None
    registered: Registered | None


def publish(
    folder: Path, *, generator: Path = GENERATOR, splits: Path = SPLITS, reports: Path = REPORTS
) -> tuple[Published, bool]:
    """Publish the trained model of the workspace.

    Returns:
        The version, and whether it is new: the same model with the same rule for seen items is not published twice in a
        row.

    Raises:
        UserError: the model is missing or does not belong to its splits or reports, or the folder belongs to the alias
            of a registered model.
    """
    check_reports(reports, generator)
    loaded = load_generator(generator)
    loaded.require_items(generator)
    check_fit(loaded, generator, Splits.read(splits), splits)
    with held(folder):
        now = current(folder)
        if now is not None and now.registered is not None:
            raise UserError(
                f"{folder} follows the alias of the registered model {now.registered.name}",
                "the alias would name another model than the one in the folder",
                "run `python -m pipeline compare --promote`, or name another folder",
            )
        origin = Ranks.read(reports / RANKS_FILE).origin if (reports / RANKS_FILE).exists() else None
        name = origin.served if origin else model_hash(generator)
        drop_seen = origin is not None and origin.filter_seen
        if now is not None and answers_alike(folder, now, name, drop_seen=drop_seen):
            return now, False
        from pipeline.results.mlflow_model import write_model

        with staged(folder) as partial:
            write_model(partial, generator, splits, reports / RANKS_FILE, origin=origin)
            made = add(folder, partial, name, None)
        point(folder, made.version)
        prune(folder)
        return made, True


def answers_alike(folder: Path, now: Published, model: str, *, drop_seen: bool) -> bool:
    """Tell whether what is served now answers as a model would: the same model, by the same rule for seen items.

    Args:
        model: its content hash.
    """
    return now.model == model and drops_seen((folder / CURRENT / RANKS).parent) == drop_seen


def rollback(folder: Path) -> Published:
    """Serve the version before again; a registered model's alias goes with it.

    Raises:
        UserError: nothing is published, or there is no version before.
    """
    with held(folder):
        now = current(folder)
        if now is None:
            raise UserError(f"nothing is published in {folder}", "there is no version to go back from", "publish first")
        before = read(folder, now.previous) if now.previous else None
        if before is None:
            raise UserError(
                f"{folder} has no version before {now.version}",
                "one earlier version is kept",
                "publish the model that you want: `git checkout` and `dvc checkout`, then `publish`",
            )
        if now.registered is None and before.registered is None:
            point(folder, before.version)
        else:
            name = (now.registered or before.registered or Registered("", "")).name
            move(folder, before, name)
        return before


def move(folder: Path, to: Published, name: str) -> None:
    """Let the alias of the registered model `name` and the link go to one version, both or, after a kill, later."""
    write_json(folder / INTENT, {"name": name, "to": to.version})
    complete(folder)


def complete(folder: Path) -> bool:
    """Finish a move that was killed; return whether there was one."""
    path = folder / INTENT
    if not path.exists():
        return False
    intent = read_json(path, name=str, to=str)
    to = read(folder, intent["to"])
    if to is not None:
        crown(to.registered, intent["name"])
        point(folder, to.version)
        prune(folder)
    path.unlink()
    return True


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder alone, and complete what a killed process left."""
    with alone(folder / "publish.lock", lambda holder: say(f"waiting for {holder}, which publishes", error=True)):
        if complete(folder):
            say(f"a promotion that was stopped is completed: {folder / CURRENT}", error=True)
        for left in (folder / VERSIONS).glob("*.partial"):
            shutil.rmtree(left)
        yield


def current(folder: Path) -> Published | None:
    """Return what the folder serves; None: nothing yet."""
    link = folder / CURRENT
    return read(folder, Path(os.readlink(link)).name) if link.is_symlink() else None


def read(folder: Path, version: str) -> Published | None:
    """Return a version of the folder; None where it is gone."""
    path = folder / VERSIONS / version / FACTS
    if not path.exists():
        return None
    facts = read_json(path, model=str)
    registered = facts.get("registered")
    return Published(version, facts["model"], facts.get("previous"), Registered(**registered) if registered else None)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a path for a version that is being made; what is left there afterwards is removed."""
    partial = folder / VERSIONS / f"{os.getpid()}.partial"
    partial.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def add(folder: Path, partial: Path, model: str, registered: Registered | None) -> Published:
    """Make a finished folder the newest version, which nothing serves yet."""
    numbers = [int(found[1]) for path in _versions(folder) if (found := re.match(r"(\d+)-", path.name))]
    now = current(folder)
    made = Published(f"{max(numbers, default=0) + 1:06d}-{model[:8]}", model, now.version if now else None, registered)
    facts: dict[str, Any] = {key: value for key, value in asdict(made).items() if key != "version"}
    write_json(partial / FACTS, facts)
    partial.rename(folder / VERSIONS / made.version)
    return made


def point(folder: Path, version: str) -> None:
    """Let the link name a version: a new link takes the name of the old one in one step."""
    link = folder / f"{CURRENT}.partial"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(VERSIONS) / version, target_is_directory=True)
    link.replace(folder / CURRENT)


def prune(folder: Path) -> None:
    """Remove all versions but the one that is served and the one before."""
    now = current(folder)
    if now is not None:
        for path in _versions(folder):
            if path.name not in (now.version, now.previous):
                shutil.rmtree(path)


def _versions(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / VERSIONS).glob("*-*") if path.is_dir())
