"""Record one MLflow run per result, and find it again by its key: a result restored or repeated is recorded once.

Everything is logged in batches, with the run's start as timestamp of every value. Logging the same again therefore
changes nothing, and the next recording completes one that was killed half-way.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.project import project_root
from pipeline.results.identity import Result
from pipeline.results.mlflow_client import entities, open_store, store_alone, told_plainly
from pipeline.results.parameters import value_text
from pipeline.results.sqlite_store import ARTIFACTS
from pipeline.results.tracking_uri import is_local, tracking_uri

KEY = "result_key"  # the tag that finds a result again
METRICS_PER_CALL = 1000  # MLflow's limits
PARAMS_PER_CALL = 100
T = TypeVar("T")


@dataclass(frozen=True)
class Recorded:
    """A recorded result has a run in MLflow; `new`: this call made the run."""

    run_id: str
    experiment_id: str
    name: str
    new: bool


def record(
    result: Result, params: dict[str, Any], tags: dict[str, str], experiment: str, artifacts: dict[Path, str]
) -> Recorded:
    """Make sure that the store holds exactly one complete run of `result`.

    Args:
        params: every parameter, flat.
        tags: added to the key and the content hashes.
        experiment: name of the MLflow experiment; it is made when it is missing.
        artifacts: file or folder -> folder inside the run's artifacts.

    Raises:
        UserError: the store cannot be used.
    """
    name = f"{params['strategy']}-{params['seed']}-{result.key[:8]}"
    with told_plainly(), store_alone():
        # 1. A complete run of this result is recorded already; it may get the name of an experiment.
        client = open_store()
        experiment_id = _experiment(client, experiment)
        found = client.search_runs([experiment_id], f"tags.{KEY} = '{result.key}'", max_results=1)
        if found and found[0].info.status == "FINISHED":
            _name_experiment(client, found[0], tags)
            return Recorded(found[0].info.run_id, experiment_id, name, new=False)
        # 2. Else a run is made, or one that was killed half-way is completed.
        run = found[0] if found else client.create_run(experiment_id, run_name=name, tags={KEY: result.key})
        _log(client, run, result, params, tags)
        for path, folder in artifacts.items():
            (client.log_artifacts if path.is_dir() else client.log_artifact)(run.info.run_id, str(path), folder)
        client.set_terminated(run.info.run_id, "FINISHED")
        return Recorded(run.info.run_id, experiment_id, name, new=True)


def _log(client: Any, run: entities.Run, result: Result, params: dict[str, Any], tags: dict[str, str]) -> None:
    """Log parameters, curves, final numbers, tags and the dataset."""
    run_id = run.info.run_id
    at = run.info.start_time
    curves = [
        entities.Metric(_curve(name), value, at, int(row["step"]))
        for row in result.history
        for name, value in row.items()
        if name != "step"
    ]
    final = [entities.Metric(name, value, at, 0) for name, value in result.metrics.items()]
    for metrics in _chunks(curves + final, METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics)
    for some in _chunks([entities.Param(key, value_text(value)) for key, value in params.items()], PARAMS_PER_CALL):
        client.log_batch(run_id, params=some)
    all_tags = {**tags, **{f"hash_{name}": value for name, value in result.hashes.items()}}
    client.log_batch(run_id, tags=[entities.RunTag(key, value) for key, value in all_tags.items()])
    counts = {name: result.dataset[name] for name in ("users", "items", "interactions")}
    dataset = entities.Dataset(
        name=params["dataset"],
        digest=result.hashes["interactions"],
        source_type="local",
        source=json.dumps({"uri": params["ingest.path"]}),
        profile=json.dumps(counts),
    )
    client.log_inputs(run_id, [entities.DatasetInput(dataset, [entities.InputTag("mlflow.data.context", "training")])])


def _curve(name: str) -> str:
    """Return the name of a curve: `valid_recall_at_10`, since `recall_at_10` is the test's."""
    return name if name in ("windows", "train_loss", "valid_loss") else f"valid_{name}"


def _experiment(client: Any, name: str) -> str:
    """Return the experiment's id, of a new experiment if there is none.

    A new experiment stores its artifacts in the project: DVC deletes the folder in which a queued run works.
    """
    known: entities.Experiment | None = client.get_experiment_by_name(name)
    if known is None:
        location = (project_root() / ARTIFACTS).as_uri() if is_local(tracking_uri()) else None
        return str(client.create_experiment(name, artifact_location=location))
    if known.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment '{name}' was deleted",
            "runs cannot be added to it",
            f"restore it (mlflow experiments restore -x {known.experiment_id}) or set track.experiment",
        )
    return known.experiment_id


def _name_experiment(client: Any, run: entities.Run, tags: dict[str, str]) -> None:
    """Give a run the name of its DVC experiment, where `dvc repro` made the same result before under no name."""
    for tag in ("dvc_experiment", "dvc_baseline"):
        if tags[tag] and not run.data.tags.get(tag):
            client.set_tag(run.info.run_id, tag, tags[tag])


def _chunks(entries: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]
