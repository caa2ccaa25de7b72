"""Say where MLflow's records go. This file does not load MLflow, so that `doctor` can ask quickly too."""

import os
import shlex
import sys
from pathlib import Path

from pipeline.errors import UserError
from pipeline.project import project_root

DATABASE = "mlflow.db"
VIEW = "sidpipe"  # the name under which an experiment holds the columns and the order of its table of runs


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the URI of a SQLite file in the project.

    A relative SQLite path means one below the project, also from inside DVC's copy for a queued experiment.

    Raises:
        UserError: the store is a SQLite database in memory, which would keep nothing.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"sqlite:///{project_root() / DATABASE}"
    if not _is_sqlite(uri):
        return uri
    scheme, _, rest = uri.partition("://")
    path, mark, options = rest.removeprefix("/").partition("?")
    if not path or ":memory:" in path or "mode=memory" in options:
        raise UserError(
            f"MLFLOW_TRACKING_URI is {uri}, a database in memory",
            "it would end with this process, and with it the record",
            "name a file, such as sqlite:////home/me/mlflow.db, or unset MLFLOW_TRACKING_URI",
        )
    return f"{scheme}:///{project_root() / path}{mark}{options}"


def _is_sqlite(uri: str) -> bool:
    return uri.partition(":")[0].partition("+")[0].lower() == "sqlite"


def database_file(uri: str) -> Path | None:
    """Return the SQLite file of a store; None: a server, or a database of another kind."""
    return Path(uri.partition("://")[2].removeprefix("/").partition("?")[0]) if _is_sqlite(uri) else None


def is_local(uri: str) -> bool:
    """Return whether the store is a file of this machine, so that this project chooses the folder of the artifacts."""
    return _is_sqlite(uri)


def how_to_see(uri: str, experiment_id: str) -> str:
    """Return the command that serves a local store, and the page with the table of runs, the best run first.

    MLflow itself opens on its traces; the address names MLflow's mode for trained models, and the view of the table.
    """
    page = f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
    if is_local(uri):
        command = Path(sys.executable).with_name("mlflow")  # works also where no environment is active
        root = project_root()
        shown = command.relative_to(root) if command.is_relative_to(root) else command
        return f"{shown} ui --backend-store-uri {shlex.quote(uri)}\nthen open http://127.0.0.1:5000{page}"
    return f"open {uri.rstrip('/')}{page}"
