"""One small project in a temporary git repository, in which `dvc repro` ran once; it serves every test of this folder.

Each test leaves the working tree as the commit has it, so that their order does not matter.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.presets import apply_preset

SMALL = [
    "embed.dimensions=16", "quantize.codes=8", "quantize.iterations=10", "backbone.encoder_layers=1",
    "backbone.decoder_layers=1", "backbone.d_model=16", "backbone.heads=2", "backbone.d_head=8", "backbone.d_ff=32",
    "train.max_windows=3000", "train.batch_tokens=1024", "train.validate_every=20", "train.checkpoint_every=20",
    "train.threads=1", "evaluate.bootstrap_samples=50",
]
STAGES = ["ingest", "embed", "quantize", "split", "train", "evaluate", "track"]


@dataclass(frozen=True)
class Repository:
    """A project's folder, and commands in it."""

    path: Path

    def run(self, *command: str, code: int = 0) -> str:
        """stdout and stderr of a command that must end with exit code `code`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": "",
            "DVC_NO_ANALYTICS": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1",
            **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
               for what, value in (("NAME", "Test"), ("EMAIL", "test@example.org"))},
        }
        done = subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)

    def restore(self) -> None:
        """Back to the commit, with its data."""
        self.run("git", "checkout", "-q", ".")
        self.run("dvc", "checkout", "-q")

    def outputs(self) -> dict[str, str]:
        """Path -> content hash of every output, as dvc.lock has it."""
        stages = yaml.safe_load((self.path / "dvc.lock").read_text())["stages"]
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}

    def query(self, sql: str) -> list[Any]:
        """Rows of the MLflow store; SQL, because importing mlflow takes seconds."""
        connection = sqlite3.connect(self.path / "mlflow.db")
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def recorded_seeds(self) -> list[str]:
        """Seed of each MLflow run."""
        return sorted(seed for (seed,) in self.query("select value from params where key = 'seed'"))


def stages_run(output: str) -> list[str]:
    """Stages that DVC says it ran, in order."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Repository:
    """The project's files as a git repository, its scenario and its model small."""
    repository = Repository(tmp_path_factory.mktemp("project"))
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True,
                            check=True)
    for name in listed.stdout.splitlines():
        if (root / name).is_file():
            (repository.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, repository.path / name)
    scenario = repository.path / "data/demo/scenario.yaml"
    text = scenario.read_text().replace("users: 2000", "users: 120").replace("items: 1000", "items: 80")
    scenario.write_text(text)
    apply_preset("demo", SMALL, folder=repository.path / "presets", params=repository.path / "params.yaml")
    repository.run("git", "init", "-q", "-b", "main")
    repository.commit("Start")
    return repository


@pytest.fixture(scope="session")
def first_run(origin: Repository) -> str:
    """What `dvc repro` printed; its results are committed afterwards, as the README tells."""
    output = origin.run("dvc", "repro")
    origin.commit("Results")
    return output


@pytest.fixture
def repository(origin: Repository, first_run: str) -> Iterator[Repository]:
    """The project after its first run."""
    yield origin
    origin.restore()
