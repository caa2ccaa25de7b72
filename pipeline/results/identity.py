"""Read the result of a finished run of the pipeline from its plain files and from dvc.lock.

A stage that DVC restores from its cache runs no code, so no run hands anything on: everything is read from files here.
"""

import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SIDS, SPLITS, fingerprint, read_json
from pipeline.errors import UserError
from pipeline.manifest import unsealed, verify
from pipeline.metric_names import MEASURED
from pipeline.printing import shown

# Table -> the columns that the page needs; OF_ACTIONS: those of a model that predicts actions. The columns of `TEXT`
# are text or may be empty; all others are numbers.
TABLES = {
    "history.csv": ("step", "train_loss", "valid_loss", "recall_at_10", "ndcg_at_10"),
    "by_history.csv": ("bin", "recall_at_10"),
    "by_popularity.csv": ("bin", "recall_at_10"),
    "kept_by_level.csv": ("level", "kept"),
    "levels.csv": ("level", "used_codes", "perplexity"),
}
OF_ACTIONS = {
    "history.csv": ("step", "train_loss", "valid_loss"),
    "by_history.csv": ("bin", "auc", "means_auc"),
    "by_popularity.csv": ("bin", "auc", "means_auc"),
}
TEXT = ("bin", "level", "category_agreement")
NUMBER = re.compile(r" *(-?\d+(\.\d*)?([eE][-+]?\d+)?|-?\.\d+|-?(nan|inf)) *")
BY_HAND = "track names a result by the content hashes of dvc.lock, which a stage run by hand does not update"


@dataclass(frozen=True, kw_only=True)
class Clock:
    """When a training went on, in seconds since 1970; 0.0 and () where an earlier version did not say.

    training: fingerprint of settings, inputs and code. times: of the rows of the history.
    """

    training: str = ""
    start: float = 0.0
    times: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """A result has numbers, curves and content hashes.

    hashes: content hashes in dvc.lock of the interactions, sids, splits, model and ranks behind the metrics. key: equal
    for equal results, whenever and wherever they were made; measurements (metric_names.MEASURED) do not count.
    """

    metrics: dict[str, float]  # of metrics.json, then of details.json
    history: list[dict[str, float]]  # one row per validation
    by_history: list[dict[str, str]]
    by_popularity: list[dict[str, str]]
    kept_by_level: list[dict[str, str]]  # share of the histories' tokens that the encoder keeps
    sid_levels: list[dict[str, str]]  # how well each level of the Semantic IDs is used
    dataset: dict[str, Any]  # ingest.json
    hashes: dict[str, str]
    key: str
    timings: dict[str, float]  # figures of training
    clock: Clock


def read_result(reports: Path, interactions: Path, sids: Path, lock: Path) -> Result:
    """Read a result from its files.

    Raises:
        UserError: a file is missing, damaged or of another run, or dvc.lock names other metrics than those at hand.
    """
    stages = _stages(lock)
    hashes = _hashes(stages, lock)
    for name in ("metrics.json", "details.json", "kept_by_position.csv", *TABLES):
        _check_recorded(reports / name, stages, lock)
    details = reports / "details.json"
    metrics = read_json(reports / "metrics.json") | unsealed(details, read_json(details), "evaluate")
    timings, clock = _measured(reports / "timings.json")
    needed = TABLES if "recall_at_10" in metrics else TABLES | OF_ACTIONS
    tables = {name: _rows((sids if name == "levels.csv" else reports) / name, needed[name]) for name in needed}
    return Result(
        metrics=metrics,
        history=[{name: float(value) for name, value in row.items()} for row in tables["history.csv"]],
        by_history=tables["by_history.csv"],
        by_popularity=tables["by_popularity.csv"],
        kept_by_level=tables["kept_by_level.csv"],
        sid_levels=tables["levels.csv"],
        dataset=read_json(interactions / "ingest.json", users=int, items=int, interactions=int),
        hashes=hashes,
        key=result_key(metrics, hashes),
        timings=timings,
        clock=clock,
    )


def _measured(path: Path) -> tuple[dict[str, float], Clock]:
    """Return the figures of training, and when it went on; nothing of a result whose file is not here."""
    content = unsealed(path, read_json(path), "train") if path.exists() else {}
    timings = {name: float(value) for name, value in content.items() if isinstance(value, int | float)}
    if not isinstance(content.get("training"), str):
        return timings, Clock()
    times = tuple(float(second) for second in content["times"])
    return timings, Clock(training=content["training"], start=timings.pop("start"), times=times)


def result_key(metrics: dict[str, float], hashes: dict[str, str]) -> str:
    """Return 64 hex digits over the content hashes and every metric that is no measurement."""
    return fingerprint(hashes, {name: value for name, value in metrics.items() if name not in MEASURED})


def _stages(lock: Path) -> dict[str, Any]:
    """Return what DVC wrote of each stage. Raises UserError where the file is missing or damaged."""
    try:
        stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
        if isinstance(stages, dict):
            return stages
    except (OSError, LookupError, TypeError, ValueError, RecursionError, yaml.YAMLError):
        pass
    raise _no_record(lock)


def _hashes(stages: dict[str, Any], lock: Path) -> dict[str, str]:
    """Return the content hashes of what the metrics rest on. Raises UserError where `lock` does not name it."""
    try:
        return {
            "interactions": _locked(stages, "ingest", "outs", INTERACTIONS),
            "sids": _locked(stages, "train", "deps", SIDS),
            "splits": _locked(stages, "train", "deps", SPLITS),
            "model": _locked(stages, "evaluate", "deps", GENERATOR),
            "ranks": _locked(stages, "evaluate", "outs", REPORTS / "ranks.parquet"),
        }
    except (LookupError, TypeError, ValueError, AttributeError):
        raise _no_record(lock) from None


def _no_record(lock: Path) -> UserError:
    return UserError(f"{lock} does not record what was evaluated", BY_HAND, "run `dvc repro`")


def _check_recorded(path: Path, stages: dict[str, Any], lock: Path) -> None:
    """Refuse a file of reports/ that is not the one that dvc.lock records, because it was damaged or made by hand."""
    name = (REPORTS / path.name).as_posix()
    for stage in ("train", "evaluate"):
        try:
            recorded = [entry["md5"] for entry in stages[stage].get("outs", []) if entry["path"] == name]
        except (LookupError, TypeError, AttributeError):
            raise _no_record(lock) from None
        if recorded and path.exists() and hashlib.md5(path.read_bytes()).hexdigest() != recorded[0]:
            raise UserError(
                f"{path} is not the file that {lock} records", f"{BY_HAND}; or the file was damaged", "run `dvc repro`"
            )


def _locked(stages: dict[str, Any], stage: str, kind: str, path: Path) -> str:
    """Return the hash of an entry of dvc.lock, `deps` or `outs` of a stage. Raises KeyError when it is not there."""
    found: dict[str, str] = {entry["path"]: entry["md5"] for entry in stages[stage][kind]}
    return found[path.as_posix()].removesuffix(".dir")


def _rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a table. Raises UserError where it is missing, or is not what a stage writes."""
    if not path.exists():
        raise UserError(f"{path} is not here", "it is part of the result", "run `dvc repro`")
    verify(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        _check_table(rows, needed)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read: {shown(error)}",
            "the file is damaged or was edited",
            "run `dvc checkout`, or `dvc repro` to make it again",
        ) from None
    return rows


def _check_table(rows: list[dict[str, str]], needed: tuple[str, ...]) -> None:
    """Raise ValueError unless there are rows with the needed columns, and numbers in all columns but those of TEXT."""
    if not rows:
        raise ValueError("it has no rows")
    if missing := [name for name in needed if name not in rows[0]]:
        raise ValueError(f"its heading lacks {', '.join(missing)}")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(f"line {number} has another number of values than the heading")
        for name, value in row.items():
            if name not in TEXT and not NUMBER.fullmatch(value):
                raise ValueError(f"line {number}: {name} is {value[:40]!r}, expected a number")
