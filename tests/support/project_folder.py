"""A project in a separate folder, and commands run there as a user runs them."""

import shutil
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from patience import PATIENCE

from benchmarks.torture.project import environment

STAGES = ["check", "ingest", "embed", "split", "count", "quantize", "train", "dense", "evaluate", "track"]


@dataclass(frozen=True)
class Repository:
    """A project's folder, and commands in it."""

    path: Path

    def run(self, *command: str, code: int = 0) -> str:
        """stdout and stderr of a command that must end with exit code `code`."""
        done = subprocess.run(
            command, cwd=self.path, env=environment(), capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def launch(self, *command: str) -> None:
        """Runs a command that leaves others behind. They would hold the pipes of `run`, which waits for their end."""
        null = subprocess.DEVNULL
        subprocess.run(
            command, cwd=self.path, env=environment(), stdout=null, stderr=null, timeout=PATIENCE, check=True
        )

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)

    def restore(self) -> None:
        """Goes back to the commit and its data, and forgets the results that a page would draw beside its own."""
        shutil.rmtree(self.path / ".sidpipe/results", ignore_errors=True)
        self.run("git", "reset", "-q", "--hard")
        self.run("dvc", "checkout", "-q")

    def queue_is_done(self) -> bool:
        """Whether no experiment of DVC's queue runs or waits."""
        status = self.run("dvc", "queue", "status")
        return "Running" not in status and "Queued" not in status

    def revision(self, experiment: str) -> str:
        """The commit in which DVC stores an experiment."""
        (line,) = [
            line
            for line in self.run("git", "for-each-ref", "refs/exps").splitlines()
            if line.endswith(f"/{experiment}")
        ]
        return line.split()[0]

    def outputs(self) -> dict[str, str]:
        """Path -> content hash of every output, as dvc.lock has it."""
        stages = yaml.safe_load((self.path / "dvc.lock").read_text())["stages"]
        return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}

    def files(self) -> dict[str, bytes]:
        """Every file that stages wrote, but that of `check`, which DVC removes and makes again at every change."""
        folders = ("data/interactions", "data/embeddings", "data/sids", "data/splits", "models", "reports")
        found = [path for folder in folders for path in (self.path / folder).rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in found}

    def query(self, sql: str) -> list[Any]:
        """Rows of the MLflow store; SQL, because importing mlflow takes seconds."""
        connection = sqlite3.connect(self.path / "mlflow.db")
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def recorded_seeds(self) -> list[str]:
        """Seed of each MLflow run of `full`; another file's test runs other strategies in the same project."""
        runs = "select run_uuid from tags where key = 'strategy' and value = 'full'"
        return sorted(
            seed for (seed,) in self.query(f"select value from tags where key = 'seed' and run_uuid in ({runs})")
        )


def stages_run(output: str) -> list[str]:
    """Stages that DVC says it ran, in order."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
