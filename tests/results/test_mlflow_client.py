"""MLflow's store is whole, follows a project that was moved, and never holds a finished result up."""

import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from finished_result import write_result
from settings import read_params

from pipeline.doctor import check_store
from pipeline.errors import UserError
from pipeline.results import mlflow_client
from pipeline.results.sqlite_store import beside, rebase
from pipeline.results.tracking_uri import tracking_uri
from pipeline.track import stage


def track(**changes: Any) -> dict[str, Any]:
    return stage.run(read_params({**changes, "track": {"log_model": False}}))


def rows(store: Path, sql: str, *values: str) -> list[Any]:
    connection = sqlite3.connect(store)
    try:
        with connection:
            return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


@pytest.fixture
def quick_tables(monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> None:
    """A new database is a copy of a finished one, which takes no seconds."""

    def copied(self: Any, **_: Any) -> None:
        shutil.copy(empty_database, self.tracking_uri.removeprefix("sqlite:///"))

    monkeypatch.setattr(mlflow_client.MlflowClient, "search_experiments", copied)


@pytest.mark.usefixtures("quick_tables")
def test_a_first_recording_that_was_killed_breaks_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Any, **_: Any) -> None:
        Path(self.tracking_uri.removeprefix("sqlite:///")).write_bytes(b"half of a table")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_client.MlflowClient, "search_experiments", killed)
        with pytest.raises(KeyboardInterrupt):
            track()
    assert not (project / "mlflow.db").exists()
    (project / "mlflow.db").touch()  # as a full disk leaves it
    assert track()["new"]
    assert not list(project.glob("*.partial*"))


def test_what_ended_processes_left_beside_a_database_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db.999999999.partial-journal").touch()
    (tmp_path / "mlflow.db.1.partial").touch()
    assert beside(tmp_path / "mlflow.db") == tmp_path / f"mlflow.db.{os.getpid()}.partial"
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db.1.partial"], "process 1 lives"


def test_a_database_without_a_run_that_cannot_be_used_may_be_deleted(project: Path) -> None:
    rows(project / "mlflow.db", "create table secrets (id int)")
    with pytest.raises(UserError, match="already exists") as caught:
        track()
    assert caught.value.fix == f"the database holds no run: delete {project}/mlflow.db, then `dvc repro` again"


@pytest.mark.parametrize("lives", [True, False], ids=["copied", "moved"])
def test_a_moved_project_takes_its_records_along(
    lives: bool, project: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = track()
    there = project.with_name(f"{project.name} se cond #1")
    if lives:
        shutil.copytree(project, there)
    else:
        project.rename(there)
        project.write_text("the old path cannot be made again")
    monkeypatch.chdir(there)
    write_result(there, seed=2, model_hash="bb22")
    second = track()
    assert f"MLflow's records named files in {project.as_uri()}/mlartifacts" in capsys.readouterr().out
    assert second["new"]
    moved = there / store.name
    ours = f"{there.as_uri()}/mlartifacts"
    uris = dict(rows(moved, "select run_uuid, artifact_uri from runs"))
    assert set(uris) >= {first["run_id"], second["run_id"]}
    assert all(uri.startswith(f"{ours}/") for uri in uris.values())
    assert rows(moved, "select artifact_location from experiments where name = 'sidpipe'") == [(ours,)]
    if lives:
        assert not rows(store, "select 1 from runs where run_uuid = ?", second["run_id"])
    for run in (first, second):
        folder = there / "mlartifacts" / run["run_id"] / "artifacts"
        assert (folder / "report/metrics.json").is_file()
    write_result(there, seed=1)
    assert track()["run_id"] == first["run_id"]
    assert "named files" not in capsys.readouterr().out


def test_models_and_their_versions_follow_and_other_addresses_stay(store: Path, tmp_path: Path) -> None:
    rows(store, "insert into experiments (name, artifact_location) values ('a', 'file:///old/mlartifacts')")
    rows(store, "insert into experiments (name, artifact_location) values ('b', 's3://bucket/mlartifacts')")
    rows(store, "insert into registered_models (name, workspace) values ('m', 'default')")
    for version, source in enumerate(("file:///old/mlartifacts/models/m-1", "models:/m-1", "file:///old/mlartifactsX")):
        rows(store, "insert into model_versions (name, version, source) values ('m', ?, ?)", str(version), source)
    assert rebase(store, tmp_path) == ["file:///old/mlartifacts"]
    found = [source for (source,) in rows(store, "select source from model_versions order by version")]
    assert found == [f"{tmp_path.as_uri()}/mlartifacts/models/m-1", "models:/m-1", "file:///old/mlartifactsX"]
    assert ("s3://bucket/mlartifacts",) in rows(store, "select artifact_location from experiments")


def test_a_project_reached_through_a_link_was_not_moved(
    project: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track()
    link = project.with_name(f"{project.name}-link")
    link.symlink_to(project)
    monkeypatch.setenv("DVC_ROOT", str(link))
    before = rows(store, "select artifact_uri from runs")
    track()
    assert rows(store, "select artifact_uri from runs") == before


@pytest.fixture
def hanging_server() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_hangs_is_given_up_and_the_result_stays(
    project: Path, hanging_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", hanging_server)
    monkeypatch.setattr(mlflow_client.Patient.__init__, "__defaults__", (0.3,))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"did not answer within 0 seconds") as caught:
        track()
    assert time.monotonic() - began < 5
    assert caught.value.why == "the result is complete in reports/, only its record is missing"
    assert (project / "reports/index.html").exists()


class FarStore:
    """A client whose store keeps what it got."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def log_artifact(self, owner: str, file: str, below: str | None = None) -> None:
        self.files[f"{owner}/{below or '.'}/{Path(file).name}"] = Path(file).read_bytes()

    def log_artifacts(self, owner: str, folder: str, below: str | None = None) -> None:
        for path in (path for path in Path(folder).rglob("*") if path.is_file()):
            inner = path.parent.relative_to(folder).as_posix()
            self.log_artifact(owner, str(path), inner if below is None else os.path.normpath(f"{below}/{inner}"))

    log_model_artifact, log_model_artifacts = log_artifact, log_artifacts


@pytest.mark.parametrize(
    ("method", "below"), [("log_model_artifacts", ()), ("log_artifacts", ("report",)), ("log_artifacts", ("a/b",))]
)
def test_a_store_far_away_has_its_time_for_each_file(
    method: str, below: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model has some 350 files; no store is given up because all of them take longer than one may."""
    for number in range(8):
        file = tmp_path / ("." if number < 3 else f"c{number % 3}/d") / f"{number}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([number]))
    direct, patient = FarStore(), FarStore()
    given: list[tuple[float, int]] = []  # seconds, and the files that they brought

    def within(seconds: float, call: Callable[[], Any]) -> Any:
        before = len(patient.files)
        answer = call()
        given.append((seconds, len(patient.files) - before))
        return answer

    monkeypatch.setattr(mlflow_client, "within", within)
    getattr(direct, method)("1", str(tmp_path), *below)
    getattr(mlflow_client.Patient(patient, 30), method)("1", str(tmp_path), *below)  # type: ignore[arg-type]
    assert given == [(30 + 1 / mlflow_client.UPLOAD_RATE, 1)] * 8
    assert len(direct.files) == 8
    assert patient.files == direct.files


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///x?mode=memory&uri=true"])
def test_a_store_in_memory_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="a database in memory"):
        track()
    assert check_store().state == "fail"


def test_a_relative_database_lies_in_the_project_also_for_a_queued_run(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(tmp_path_factory.mktemp("copy"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    assert tracking_uri() == f"sqlite:///{project}/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/runs.db")
    assert tracking_uri() == "sqlite:////elsewhere/runs.db"


def test_a_folder_in_place_of_the_database_is_told_at_once(project: Path) -> None:
    (project / "mlflow.db").mkdir()
    began = time.monotonic()
    with pytest.raises(UserError, match=r"mlflow\.db is a folder"):
        track()
    assert time.monotonic() - began < 10
    assert urlparse(tracking_uri()).path.endswith("mlflow.db")
