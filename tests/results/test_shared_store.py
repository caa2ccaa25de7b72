"""Several machines record in one store at once: what they share is made once, and the mean holds all results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from finished_result import write_result
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS
from settings import read_params

from pipeline.errors import UserError
from pipeline.results import mlflow_store, seeds
from pipeline.results.mlflow_client import MEETINGS, met_another
from pipeline.results.mlflow_store import experiment_of
from pipeline.results.tracking_uri import tracking_uri
from pipeline.track import stage

VIOLATED = (
    "(psycopg.errors.UniqueViolation) duplicate key value violates unique constraint",
    "BAD_REQUEST: (psycopg.errors.UniqueViolation) duplicate key value",  # through a server
    "(sqlite3.IntegrityError) UNIQUE constraint failed: tags.key, tags.run_uuid",
    "(pymysql.err.IntegrityError) (1062, \"Duplicate entry 'seeds-1' for key 'PRIMARY'\")",
    "(psycopg.errors.DeadlockDetected) deadlock detected",
)
pytestmark = pytest.mark.usefixtures("store")


def track(project: Path, seed: int) -> str:
    write_result(project, seed=seed, model_hash=f"{seed:04}", train_seconds=10.0 * seed)
    run_id: str = stage.run(read_params({"seed": seed, "track": {"log_model": False}}))["run_id"]
    return run_id


def recorded() -> list[Run]:
    client = MlflowClient(tracking_uri())
    found: list[Run] = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return found


def parents() -> list[Run]:
    return [run for run in recorded() if run.data.tags["run_kind"] == "seeds"]


def fail(monkeypatch: pytest.MonkeyPatch, name: str, text: str, times: int) -> list[str]:
    """Let MLflow's method fail so many times. Returns a list that grows with each call."""
    method, calls = getattr(MlflowClient, name), list[str]()

    def failing(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) <= times:
            raise MlflowException(text)
        return method(*arguments, **named)

    monkeypatch.setattr(MlflowClient, name, failing)
    return calls


@pytest.mark.parametrize("name", ["set_experiment_tag", "log_inputs", "set_tag", "log_batch"])
def test_a_call_that_met_another_process_is_made_again(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fail(monkeypatch, name, VIOLATED[0], MEETINGS - 1)
    track(project, 1)
    assert len(calls) >= MEETINGS
    assert [(run.info.status, run.data.tags["seed"]) for run in recorded()] == [("FINISHED", "1")]


@pytest.mark.parametrize(("text", "times"), [(VIOLATED[0], MEETINGS), ("the disk is full", 1)])
def test_a_call_that_cannot_succeed_is_told(
    text: str, times: int, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fail(monkeypatch, "log_inputs", text, 1000)
    with pytest.raises(UserError) as told:
        track(project, 1)
    assert text in str(told.value)
    assert len(calls) == times


def test_what_databases_say_of_another_process_is_known() -> None:
    assert all(met_another(MlflowException(text)) for text in VIOLATED)
    assert not met_another(MlflowException("Run 'ab' not found"))
    assert not met_another(MlflowException(f"Experiment already exists. Error: {VIOLATED[0]}", RESOURCE_ALREADY_EXISTS))


def test_an_experiment_that_another_machine_made_meanwhile_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(tracking_uri())
    created = client.create_experiment("shared")
    find, looks = MlflowClient.get_experiment_by_name, list[str]()

    def late(self: MlflowClient, name: str) -> Any:
        looks.append(name)
        return None if len(looks) == 1 else find(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    assert experiment_of(client, "shared") == created


def test_a_result_that_comes_while_the_mean_is_written_is_in_the_mean(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = seeds._log_means, list[int]()

    def disturbed(client: Any, run_id: str, metrics: Sequence[dict[str, float]], at: int) -> None:
        if not written:  # another machine records a third result, and its mean, before this mean is written
            experiment_id = client.get_run(run_id).info.experiment_id
            (like,) = (run for run in recorded() if run.data.tags.get("seed") == "1")
            other = client.create_run(experiment_id, tags={**like.data.tags, "seed": "3"})
            for name, value in like.data.metrics.items():
                client.log_metric(other.info.run_id, name, 30.0 if name == "cost/train_seconds" else value)
            client.set_terminated(other.info.run_id)
        written.append(len(metrics))
        write(client, run_id, metrics, at)

    monkeypatch.setattr(seeds, "_log_means", disturbed)
    track(project, 1)
    track(project, 2)
    assert written == [2, 3]
    (parent,) = parents()
    assert parent.data.tags["seeds"] == "1, 2, 3"
    assert parent.info.run_name.endswith(", 3 seeds")
    assert parent.data.metrics["cost/train_seconds"] == 20.0
    children = [run for run in recorded() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 3


@pytest.mark.parametrize("method", ["update_run", "set_terminated", "set_tag"])
def test_a_mean_that_was_killed_half_way_is_completed(
    method: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def group(client: Any, *arguments: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, method, killed)
            seeds.group_seeds(client, *arguments)

    first = track(project, 1)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "group_seeds", group)
        with pytest.raises(KeyboardInterrupt):
            track(project, 2)
    second = track(project, 2)
    (parent,) = parents()
    assert (parent.data.tags["seeds"], parent.info.status) == ("1, 2", "FINISHED")
    assert parent.data.metrics["cost/train_seconds"] == 15.0
    under = {run.info.run_id for run in recorded() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert under == {first, second}
    before = [run.to_dictionary() for run in recorded()]
    assert track(project, 2) == second
    assert [run.to_dictionary() for run in recorded()] == before


@pytest.mark.parametrize("order", [1, -1])
def test_a_mean_that_two_machines_made_stays_once(order: int, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = seeds._make_parent

    def twice(*arguments: Any) -> Run:
        made = sorted((make(*arguments), make(*arguments)), key=lambda run: order * int(run.info.run_id, 16))
        return made[0]

    monkeypatch.setattr(seeds, "_make_parent", twice)
    ids = {track(project, seed) for seed in (1, 2)}
    (parent,) = parents()
    assert parent.data.tags["seeds"] == "1, 2"
    assert parent.info.status == "FINISHED"
    under = {run.info.run_id for run in recorded() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert under == ids


def test_a_mean_that_another_machine_deletes_meanwhile_is_made_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, deleted = seeds._log_means, list[str]()

    def disturbed(client: Any, run_id: str, metrics: Sequence[dict[str, float]], at: int) -> None:
        if not deleted:
            deleted.append(run_id)
            client.delete_run(run_id)
        write(client, run_id, metrics, at)

    monkeypatch.setattr(seeds, "_log_means", disturbed)
    track(project, 1)
    track(project, 2)
    (parent,) = parents()
    assert parent.info.run_id not in deleted
    assert parent.data.tags["seeds"] == "1, 2"
