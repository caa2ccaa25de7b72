"""Record a search of settings in MLflow: a parent run for the search, and a child for each trial.

A run is found again by its tag, so that a search which goes on adds to the record and changes nothing of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifacts import fingerprint
from pipeline.results.mlflow_client import entities, open_store, store_alone, told_plainly
from pipeline.results.mlflow_store import PARAMS_PER_CALL, experiment_of
from pipeline.results.parameters import value_text
from pipeline.results.seeds import KIND

SEARCH = "search_key"  # the tag that finds the parent
TRIAL = "trial_key"  # the tag that finds a child
STANDS = "the trials are complete, only their record in MLflow is missing"


def record_search(
    experiment: str,
    key: str,
    name: str,
    trials: Sequence[tuple[str, int, Mapping[str, Any], Mapping[str, Any]]],
) -> None:
    """Make sure that the store holds the search and these trials, each once.

    Args:
        experiment: name of the MLflow experiment; it is made when it is missing.
        key: of the trial of params.yaml as it stands, which all searches on it share.
        name: of the parent run; with `key` it names the search.
        trials: key, number, changes and result of each finished trial.

    Raises:
        UserError: the store cannot be used.
    """
    with told_plainly(STANDS, "run the same command again"), store_alone(silent=True):
        client = open_store()
        experiment_id = experiment_of(client, experiment)
        key = fingerprint(key, name)[:16]
        parent = _run_of(client, experiment_id, SEARCH, key, name, {KIND: "search"})
        for trial, number, changes, result in trials:
            tags = {KIND: "trial", SEARCH: "", "mlflow.parentRunId": parent.info.run_id}
            run = _run_of(client, experiment_id, TRIAL, f"{key} {trial}", f"{name}, trial {number}", tags)
            if run.info.status == "FINISHED":
                continue
            run_id = run.info.run_id
            params = [entities.Param(name, value_text(value)) for name, value in changes.items()]
            for start in range(0, len(params), PARAMS_PER_CALL):
                client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
            at = run.info.start_time
            points = [
                entities.Metric(f"validation/{name}", value, at, int(row["step"]))
                for row in result["history"]
                for name, value in row.items()
                if name != "step"
            ]
            for start in range(0, len(points), 1000):
                client.log_batch(run_id, metrics=points[start : start + 1000])
            client.log_batch(run_id, metrics=[entities.Metric("best", result["value"], at, 0)])
            client.set_terminated(run_id, "FINISHED")
        client.set_terminated(parent.info.run_id, "FINISHED")


def _run_of(client: Any, experiment_id: str, tag: str, key: str, name: str, tags: Mapping[str, str]) -> Any:
    """Return the run with this tag, made where there is none."""
    found = client.search_runs([experiment_id], f"tags.{tag} = '{key}'", max_results=1)
    return found[0] if found else client.create_run(experiment_id, tags={**tags, tag: key}, run_name=name)
