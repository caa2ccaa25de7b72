"""Where MLflow's records go. Light on purpose: `doctor` asks too."""

import os
from pathlib import Path

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"


def project_root() -> Path:
    """The project's own folder, also from inside the temporary copy in which DVC runs a queued experiment.

    DVC tells its stages in DVC_ROOT; by hand it is the nearest folder upwards that DVC was initialised in.
    """
    if told := os.environ.get("DVC_ROOT"):
        return Path(told)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / DATABASE}"


def is_local(uri: str) -> bool:
    """Whether the store is a file of this machine, so that the artifacts' place is ours to choose."""
    return uri.startswith("sqlite:///")


def ui_command(uri: str) -> str:
    """What shows the store: a command, or where its server is."""
    return f"mlflow ui --backend-store-uri {uri}" if is_local(uri) else f"open {uri}"
