"""Read the result of a finished run of the pipeline from its plain files and from dvc.lock.

A stage that DVC restores from its cache runs no code, so no run hands anything on: everything is read from files here.
"""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SIDS, SPLITS, fingerprint, read_json
from pipeline.errors import UserError
from pipeline.metric_names import MEASURED


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


def read_result(reports: Path, interactions: Path, sids: Path, lock: Path) -> Result:
    """Read a result from its files.

    Raises:
        UserError: a file is missing or damaged, or dvc.lock names other metrics than those at hand.
    """
    hashes = read_hashes(lock, reports / "metrics.json")
    metrics = read_json(reports / "metrics.json") | read_json(reports / "details.json")
    history = [{name: float(value) for name, value in row.items()} for row in _rows(reports / "history.csv")]
    return Result(
        metrics=metrics,
        history=history,
        by_history=_rows(reports / "by_history.csv"),
        by_popularity=_rows(reports / "by_popularity.csv"),
        kept_by_level=_rows(reports / "kept_by_level.csv"),
        sid_levels=_rows(sids / "levels.csv"),
        dataset=read_json(interactions / "ingest.json"),
        hashes=hashes,
        key=result_key(metrics, hashes),
    )


def result_key(metrics: dict[str, float], hashes: dict[str, str]) -> str:
    """Return 64 hex digits over the content hashes and every metric that is no measurement."""
    return fingerprint(hashes, {name: value for name, value in metrics.items() if name not in MEASURED})


def read_hashes(lock: Path, metrics: Path) -> dict[str, str]:
    """Return the content hashes of what the metrics rest on, as DVC wrote them.

    Raises:
        UserError: `lock` does not name what was evaluated, or names other metrics than the file `metrics`.
    """
    by_hand = "track names a result by the content hashes of dvc.lock, which a stage run by hand does not update"
    try:
        stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
        recorded = _locked(stages, "evaluate", "outs", REPORTS / "metrics.json")
        hashes = {
            "interactions": _locked(stages, "ingest", "outs", INTERACTIONS),
            "sids": _locked(stages, "train", "deps", SIDS),
            "splits": _locked(stages, "train", "deps", SPLITS),
            "model": _locked(stages, "evaluate", "deps", GENERATOR),
            "ranks": _locked(stages, "evaluate", "outs", REPORTS / "ranks.parquet"),
        }
    except (OSError, LookupError, TypeError, ValueError, AttributeError, yaml.YAMLError):
        raise UserError(f"{lock} does not record what was evaluated", by_hand, "run `dvc repro`") from None
    if metrics.exists() and hashlib.md5(metrics.read_bytes()).hexdigest() != recorded:
        raise UserError(f"{metrics} is not the file that {lock} records", by_hand, "run `dvc repro`")
    return hashes


def _locked(stages: dict[str, Any], stage: str, kind: str, path: Path) -> str:
    """Return the hash of an entry of dvc.lock, `deps` or `outs` of a stage. Raises KeyError when it is not there."""
    found: dict[str, str] = {entry["path"]: entry["md5"] for entry in stages[stage][kind]}
    return found[path.as_posix()].removesuffix(".dir")


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        raise UserError(f"{path} is not here", "it is part of the result", "run `dvc repro`")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
