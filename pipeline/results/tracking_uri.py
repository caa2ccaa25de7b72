"""Where MLflow's records go. Light on purpose: `doctor` asks too."""

import os
import shlex
import sys
from pathlib import Path

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"


def project_root() -> Path:
    """The project's own folder, also from inside the temporary copy in which DVC runs a queued experiment.

    DVC tells its stages in DVC_ROOT; by hand it is the nearest folder upwards that DVC was initialised in.
    """
    if declared := os.environ.get("DVC_ROOT"):
        return Path(declared)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / DATABASE}"


def is_local(uri: str) -> bool:
    """Whether the store is a file of this machine, so that the artifacts' place is ours to choose."""
    return uri.startswith("sqlite:///")


def how_to_see(uri: str, experiment_id: str) -> str:
    """The command that serves a local store, and the page with the runs: MLflow itself opens on one for traces."""
    page = f"/#/experiments/{experiment_id}/runs"
    if is_local(uri):
        command, root = Path(sys.executable).with_name("mlflow"), project_root()  # also where no environment is active
        shown = command.relative_to(root) if command.is_relative_to(root) else command
        return f"{shown} ui --backend-store-uri {shlex.quote(uri)}\nthen open http://127.0.0.1:5000{page}"
    return f"open {uri.rstrip('/')}{page}"
