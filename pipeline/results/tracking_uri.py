"""Say where MLflow's records go. This file does not load MLflow, so that `doctor` can ask quickly too."""

import os
import shlex
import sys
from pathlib import Path

from pipeline.project import project_root

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the URI of a SQLite file in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / DATABASE}"


def is_local(uri: str) -> bool:
    """Return whether the store is a file of this machine, so that this project chooses the folder of the artifacts."""
    return uri.startswith("sqlite:///")


def how_to_see(uri: str, experiment_id: str) -> str:
    """Return the command that serves a local store, and the page with the runs (MLflow itself opens on its traces)."""
    page = f"/#/experiments/{experiment_id}/runs"
    if is_local(uri):
        command = Path(sys.executable).with_name("mlflow")  # works also where no environment is active
        root = project_root()
        shown = command.relative_to(root) if command.is_relative_to(root) else command
        return f"{shown} ui --backend-store-uri {shlex.quote(uri)}\nthen open http://127.0.0.1:5000{page}"
    return f"open {uri.rstrip('/')}{page}"
