"""A temporary project with one finished result, and an MLflow database that is made once."""

import json
import shutil
from pathlib import Path

import pytest
from finished_result import write_result


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder becomes a project with one result."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for folder in (".dvc", "reports", "data/interactions", "data/sids", "models/generator"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("seed: 42\n")
    (tmp_path / "models/generator/model.safetensors").write_bytes(b"weights")
    (tmp_path / "data/interactions/ingest.json").write_text(
        json.dumps({"users": 2000, "items": 1000, "interactions": 41234})
    )
    write_result(tmp_path, seed=1)
    return tmp_path


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow makes a new SQLite store in seconds, and a copy serves as well."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(project: Path, empty_database: Path) -> Path:
    """The MLflow database of the project."""
    return Path(shutil.copy(empty_database, project / "mlflow.db"))
