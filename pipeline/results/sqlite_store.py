"""Look after a SQLite file in which MLflow keeps its records, without MLflow: where it is, and what it points to."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

from pipeline.errors import UserError

ARTIFACTS = "mlartifacts"  # the project's folder for files of runs
# Table and column of each address of a file that MLflow's database holds.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def check_file(path: Path) -> None:
    """Check that `path` is a file or nothing yet. Raises UserError for a folder, which SQLite answers after minutes."""
    if path.is_dir():
        raise UserError(
            f"MLflow's database {path} is a folder",
            "MLflow keeps its records in one SQLite file; the result is complete in reports/",
            "move the folder away, or set MLFLOW_TRACKING_URI, then `dvc repro` again",
        )


def is_absent(path: Path) -> bool:
    """Return whether there is no database yet; a file of 0 bytes is none."""
    return not path.exists() or path.stat().st_size == 0


def holds_no_run(path: Path) -> bool:
    """Return whether the file is a SQLite database without a run, as a first recording that was killed left it."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            return "runs" not in tables or not database.execute("select 1 from runs limit 1").fetchall()
    except sqlite3.Error:
        return False


def beside(path: Path) -> Path:
    """Return the name under which this process makes a new database, and delete those of processes that have ended."""
    for other in path.parent.glob(f"{path.name}.*.partial*"):
        if not _lives(other.name.removeprefix(f"{path.name}.").split(".")[0]):
            other.unlink(missing_ok=True)
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def rebase(path: Path, root: Path) -> list[str]:
    """Let a project's database point to the files of the project, wherever it was moved or copied from.

    Experiments of this project have `FOLDER/mlartifacts` as the address of their files, and everything that lies below
    another folder's address gets the same path below `root`. All of it happens in one transaction.

    Args:
        path: the database of the project `root`, which exists.

    Returns:
        The addresses that were replaced, such as `file:///home/me/first/mlartifacts`.

    Raises:
        sqlite3.Error: the file is no database, or cannot be written.
    """
    here = root / ARTIFACTS
    with closing(sqlite3.connect(path, timeout=20)) as database, database:
        columns = [(table, column) for table, column in ADDRESSES if column in _columns(database, table)]
        if ADDRESSES[0] not in columns:
            return []
        known = [uri for (uri,) in database.execute("select distinct artifact_location from experiments") if uri]
        foreign = [uri for uri in known if _is_foreign(uri, here)]
        for uri in foreign:
            for table, column in columns:
                database.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "  # the names are constants of this file
                    f"where {column} = ? or substr({column}, 1, ?) = ?",
                    (here.as_uri(), len(uri) + 1, uri, len(uri) + 1, f"{uri}/"),
                )
    return foreign


def _columns(database: sqlite3.Connection, table: str) -> set[str]:
    return {name for _, name, *_ in database.execute(f"pragma table_info({table})")}


def _is_foreign(uri: str, here: Path) -> bool:
    """Return whether an experiment's address is the folder `mlartifacts` of another project folder of this machine."""
    parts = urlparse(uri)
    if parts.scheme not in ("", "file") or Path(unquote(parts.path)).name != ARTIFACTS or uri == here.as_uri():
        return False
    return Path(unquote(parts.path)).resolve() != here.resolve()
