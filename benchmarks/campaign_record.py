"""Bring the results of a campaign that ran elsewhere into docs/results, and its rows into MLflow."""

from pathlib import Path
from typing import Any

from benchmarks.campaign_rows import Record, Results
from pipeline.errors import UserError
from pipeline.results.compact_ranks import read_compact
from pipeline.results.identity import Clock, Result, result_key
from pipeline.results.run_names import RunName
from pipeline.strategies.registry import settings_types
from pipeline.track.description import describe_run


def record_all(source: Path, results: Results) -> str:
    """Add the records of `source` that `results` lacks, with their ranks, and log every result to MLflow once.

    Returns:
        What was done, in one line.

    Raises:
        UserError: there are no results in `source`, the ranks of one are missing, or MLflow cannot be used.
    """
    theirs = Results(source)
    if not theirs.path.exists():
        raise UserError(f"{theirs.path} is not here", "a campaign writes it", "name the folder that had --results")
    added = merge(theirs, results)
    new = sum(log_to_mlflow(record, results) for record in results.records() if record["measure"] == "quality")
    return f"campaign: {added} records added to {results.path}, {new} runs recorded in MLflow"


def merge(theirs: Results, ours: Results) -> int:
    """Append the records of `theirs` that `ours` lacks, and return their number; ours stay as they are."""
    known = ours.records()
    added = 0
    for record in theirs.records():
        if record in known:
            continue
        ranks = theirs.ranks(record["key"])
        first = record["measure"] == "quality" and not ours.ranks(record["key"]).exists()
        ours.append(record, ranks.read_bytes() if first else None)
        known.append(record)
        added += 1
    return added


def log_to_mlflow(record: Record, results: Results) -> bool:
    """Log the run of a record for quality, and return whether MLflow did not have it."""
    from pipeline.results.mlflow_store import record as log

    path = results.ranks(record["key"])
    ranks, params = read_compact(path)
    hashes = {"interactions": record["data_hash"][:32], "sids": str(record["sid_seed"])}
    hashes |= {"splits": ranks.origin.splits, "model": record["model"], "ranks": record["key"]}
    figures: dict[str, float] = record["figures"]
    result = Result(
        metrics=figures,
        history=record["history"],
        by_history=[],
        by_popularity=[],
        kept_by_level=[],
        sid_levels=[],
        dataset=record["counts"],
        hashes=hashes,
        key=result_key(figures, hashes),
        timings={},
        clock=Clock(),
    )
    name = RunName.of(params, settings_types())
    tags = {**name.tags(hashes["interactions"]), **_origin(record, params)}
    added = log(
        result,
        params,
        name,
        tags,
        params["track.experiment"],
        {path: "report"},
        lambda run_id: describe_run(result, params, name, run_id),
    )
    return added.new


def _origin(record: Record, params: dict[str, Any]) -> dict[str, str]:
    """Return the tags that say where a run comes from."""
    return {
        "dataset": str(params["dataset"]),
        "git_commit": record["commit"],
        "mlflow.source.git.commit": record["commit"],
        "mlflow.source.name": record["command"],
        "mlflow.source.type": "LOCAL",
        "git_dirty": str(record["commit"].endswith("+changes")).lower(),
        "dvc_experiment": "",
        "dvc_baseline": "",
        "campaign": f"{record['group']}: {record['arm']}",
        "hardware": record["hardware"],
    }
