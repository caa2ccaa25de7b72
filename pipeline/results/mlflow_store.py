"""Record one MLflow run per result, and find it again by its key: a result restored or repeated is recorded once.

Everything is logged in batches. The rows of a curve have the times at which training measured them, all other values
the run's start. Logging the same again therefore changes nothing, and the next recording completes one that was killed
half-way. A run that the command `train` began is completed by the first result of that training.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.project import project_root
from pipeline.results.identity import Result
from pipeline.results.mlflow_client import EXISTS, MlflowException, entities, open_store, store_alone, told_plainly
from pipeline.results.parameters import value_text
from pipeline.results.run_names import RunName, first_other
from pipeline.results.run_table import set_view
from pipeline.results.sections import curve_metrics, final_metrics
from pipeline.results.seeds import KIND, group_seeds
from pipeline.results.sqlite_store import ARTIFACTS
from pipeline.results.tracking_uri import is_local, tracking_uri
from pipeline.stopping import started

KEY = "result_key"  # the tag that finds a result again
TRAINING = "training"  # the tag that finds the run of a training, with its start
METRICS_PER_CALL = 1000  # MLflow's limits
PARAMS_PER_CALL = 100
NOTE = 8000  # characters of a description, at most
T = TypeVar("T")


@dataclass(frozen=True)
class Recorded:
    """A recorded result has a run in MLflow; `new`: this call recorded it."""

    run_id: str
    experiment_id: str
    name: str
    new: bool


def record(
    result: Result,
    params: dict[str, Any],
    name: RunName,
    tags: dict[str, str],
    experiment: str,
    artifacts: dict[Path, str],
    describe: Callable[[str], str],
) -> Recorded:
    """Make sure that the store holds exactly one complete run of `result`.

    Processes of one project take turns. Those of several projects may share the store, and record different results
    at once; one result that two projects record at the same moment has two runs.

    Args:
        params: every parameter, flat.
        tags: added to those of `name`, the key and the content hashes.
        experiment: name of the MLflow experiment; it is made when it is missing.
        artifacts: file or folder -> folder inside the run's artifacts.
        describe: returns the description of the run with that id.

    Raises:
        UserError: the store cannot be used.
    """
    with told_plainly(), store_alone():
        # 1. A complete run of this result is recorded already; it may get the name of an experiment. Who recorded it
        #    may have been killed before step 3.
        client = open_store()
        experiment_id = experiment_of(client, experiment)
        set_view(client, experiment_id)
        mark_dead(client, experiment_id)
        found = client.search_runs([experiment_id], f"tags.{KEY} = '{result.key}'", max_results=1)
        if found and found[0].info.status == "FINISHED":
            _name_experiment(client, found[0], tags)
            group_seeds(client, experiment_id, name.tags(result.hashes["interactions"])["setting"])
            return Recorded(found[0].info.run_id, experiment_id, found[0].info.run_name, new=False)
        # 2. Else a run is made, or one that was killed half-way or began with the training is completed.
        start = result.clock.start or time.time()
        found = found or _of_training(client, experiment_id, result, params)
        mine = {KEY: result.key, KIND: "result", **name.tags(result.hashes["interactions"])}
        run = found[0] if found else client.create_run(experiment_id, start_time=int(start * 1000), tags=mine)
        run_id = run.info.run_id
        if found:
            client.log_batch(run_id, tags=[entities.RunTag(key, value) for key, value in mine.items()])
        title = title_of(client, experiment_id, name, run_id, result.key)
        client.update_run(run_id, status="RUNNING", name=title)
        _log(client, run, result, params, tags)
        for path, folder in artifacts.items():
            (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), folder)
        client.set_tag(run_id, "mlflow.note.content", describe(run_id)[:NOTE])
        seconds = result.timings.get("wall_seconds", 0.0)
        end = result.clock.start + seconds if result.clock.start else time.time()
        client.set_terminated(run_id, "FINISHED", end_time=int(end * 1000))
        # 3. Results that differ in the seed only stand under one run, with their mean.
        group_seeds(client, experiment_id, mine["setting"])
        return Recorded(run_id, experiment_id, title, new=True)


def title_of(client: Any, experiment_id: str, name: RunName, run_id: str, key: str) -> str:
    """Return the name of a run: what it has in common with others, and what differs from the first of these."""
    filter_string = f"tags.base_name = '{name.base}'"
    runs = client.search_runs([experiment_id], filter_string, max_results=2, order_by=["attributes.start_time ASC"])
    return name.beside(first_other(((run.info.run_id, run.data.params) for run in runs), run_id), key)


def mark_dead(client: Any, experiment_id: str) -> None:
    """Mark the runs of trainings whose process, of this machine, has ended without a word."""
    running = f"tags.{KIND} = 'training' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], running):
        host, _, process = run.data.tags.get("process", "").partition(" ")
        pid, _, since = process.partition(" ")
        if host == socket.gethostname() and pid.isdecimal() and started(int(pid)) != since:
            client.set_tag(run.info.run_id, "ended", "its process died; the same command goes on from its checkpoint")
            client.set_terminated(run.info.run_id, "KILLED")


def _of_training(client: Any, experiment_id: str, result: Result, params: dict[str, Any]) -> list[entities.Run]:
    """Return the run that `train` began for this training, where no result has completed it.

    MLflow lets no parameter change, so a run that names other parameters is left as it is.
    """
    clock = result.clock
    if not clock.training:
        return []
    filter_string = f"tags.{TRAINING} = '{training_tag(clock.training, clock.start)}' and tags.{KIND} = 'training'"
    texts = {key: value_text(value) for key, value in params.items()}
    runs = client.search_runs([experiment_id], filter_string, max_results=1)
    return [run for run in runs if all(texts.get(key) == value for key, value in run.data.params.items())]


def training_tag(training: str, start: float) -> str:
    """Return what tells one training from all others: its fingerprint, and its start in microseconds."""
    return f"{training}-{start * 1e6:.0f}"


def _log(client: Any, run: entities.Run, result: Result, params: dict[str, Any], tags: dict[str, str]) -> None:
    """Log parameters, curves, final numbers, tags and the dataset."""
    run_id = run.info.run_id
    at = run.info.start_time
    final = [
        entities.Metric(name, value, at, 0) for name, value in final_metrics(result.metrics, result.timings).items()
    ]
    for metrics in _chunks(final + _new_points(client, run, result), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics)
    for some in _chunks([entities.Param(key, value_text(value)) for key, value in params.items()], PARAMS_PER_CALL):
        client.log_batch(run_id, params=some)
    all_tags = {**tags, **{f"hash_{name}": value for name, value in result.hashes.items()}}
    client.log_batch(run_id, tags=[entities.RunTag(key, value) for key, value in all_tags.items()])
    counts = {name: result.dataset[name] for name in ("users", "items", "interactions")}
    dataset = entities.Dataset(
        name=tags["data"],
        digest=result.hashes["interactions"],
        source_type="local",
        source=json.dumps({"uri": params["ingest.path"]}),
        profile=json.dumps(counts),
    )
    client.log_inputs(run_id, [entities.DatasetInput(dataset, [entities.InputTag("mlflow.data.context", "training")])])


def _new_points(client: Any, run: entities.Run, result: Result) -> list[entities.Metric]:
    """Return the points of the curves that the run does not have yet."""
    start = run.info.start_time
    times = [int(seconds * 1000) for seconds in result.clock.times]
    if len(times) != len(result.history):
        times = [start] * len(result.history)  # an earlier version did not say when
    points = [
        entities.Metric(name, value, at, int(row["step"]))
        for row, at in zip(result.history, times, strict=True)
        for name, value in curve_metrics(row).items()
    ]
    known = {
        name: {point.step for point in client.get_metric_history(run.info.run_id, name)}
        for name in {point.key for point in points} & set(run.data.metrics)
    }
    return [point for point in points if point.step not in known.get(point.key, ())]


def experiment_of(client: Any, name: str) -> str:
    """Return the experiment's id, of a new experiment if there is none.

    A new experiment stores its artifacts in the project: DVC deletes the folder in which a queued run works. Another
    machine may make it at the same moment; then its experiment is returned.
    """
    known: entities.Experiment | None = client.get_experiment_by_name(name)
    if known is None:
        location = (project_root() / ARTIFACTS).as_uri() if is_local(tracking_uri()) else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            known = client.get_experiment_by_name(name) if error.error_code == EXISTS else None
            if known is None:
                raise
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
