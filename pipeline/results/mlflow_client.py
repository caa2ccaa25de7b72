"""Reach MLflow's store: make its database whole, keep it with a moved project, and give up a store that hangs.

Other files take `entities` and `MlflowException` from here.
"""

import atexit
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.artifacts import SCRATCH
from pipeline.errors import UserError
from pipeline.locks import alone
from pipeline.printing import say
from pipeline.project import project_root
from pipeline.results.sqlite_store import ARTIFACTS, beside, check_file, holds_no_run, is_absent, rebase
from pipeline.results.tracking_uri import DATABASE, database_file, tracking_uri

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # no lines about the tables of a new database
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # MLflow's 7 are four silent minutes without a server

from mlflow import MlflowClient as MlflowClient
from mlflow import entities as entities
from mlflow.exceptions import MlflowException as MlflowException
from sqlalchemy.exc import SQLAlchemyError

logging.getLogger("urllib3").setLevel(logging.ERROR)  # no line for each try of a server that is away

PATIENCE = 30.0  # seconds in which a store must answer a call
MEETINGS = 5  # times that one call is made, at most, because other processes wrote the same row
UPLOAD_RATE = 1e6  # bytes per second that an upload may at least be expected to reach
# Methods that upload a folder, and those that upload a file of it
UPLOADS = {"log_artifacts": "log_artifact", "log_model_artifacts": "log_model_artifact"}
EXISTS = "RESOURCE_ALREADY_EXISTS"  # the error code of a second experiment or registered model of one name
KEPT = "the result is complete in reports/, only its record is missing"
REPRO = "`dvc repro` again"


class StoreHangsError(Exception):
    """MLflow's store did not answer in time."""


def open_store() -> Any:
    """Return a client of the store that is given up where a call takes too long; the caller holds `store_alone`.

    Raises:
        UserError, MlflowException, SQLAlchemyError, sqlite3.Error, OSError: see `told_plainly`.
    """
    uri = tracking_uri()
    path = database_file(uri)
    if path:
        check_file(path)
        if is_absent(path):
            _make(path)
        elif path == project_root() / DATABASE:
            _keep_with_project(path)
    return within(PATIENCE, lambda: Patient(MlflowClient(uri)))


def _make(path: Path) -> None:
    """Make MLflow's tables in a file beside `path`, so that a process killed meanwhile leaves no half of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    partial.unlink(missing_ok=True)
    # A training may end while its thread makes the database: then no `finally` of the thread runs.
    atexit.register(_remove, partial)
    MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)
    os.replace(partial, path)


def _remove(partial: Path) -> None:
    """Remove what is left of a database that was not finished, with SQLite's files beside it."""
    for file in partial.parent.glob(f"{partial.name}*"):
        file.unlink(missing_ok=True)


def _keep_with_project(path: Path) -> None:
    for uri in rebase(path, project_root()):
        say(f"MLflow's records named files in {uri}; they now name the same files in {project_root() / ARTIFACTS}")


class Patient:
    """A `Patient` has the methods of MLflow's client, each of which must answer in time. Raises StoreHangsError.

    A folder is uploaded file by file, because a store that is far away may need longer for some hundred files than
    any store may need for one. A call that met another process at the same row is made again.
    """

    def __init__(self, client: MlflowClient, patience: float = PATIENCE):
        self._client = client
        self._patience = patience

    def __getattr__(self, name: str) -> Any:
        if name in UPLOADS:
            return lambda *where: self._upload(UPLOADS[name], *where)
        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            extra = bytes_of(Path(arguments[1])) / UPLOAD_RATE if name in UPLOADS.values() else 0
            for _ in range(MEETINGS - 1):
                try:
                    return within(self._patience + extra, lambda: method(*arguments, **named))
                except MlflowException as error:
                    if not met_another(error):
                        raise
            return within(self._patience + extra, lambda: method(*arguments, **named))

        return call

    def _upload(self, name: str, owner: str, folder: str, below: str = "") -> None:
        """Upload the files of a folder by the method `name`, into the folder `below` of the artifacts of `owner`."""
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                into = PurePosixPath(below, path.parent.relative_to(folder).as_posix())
                getattr(self, name)(owner, str(path), None if into == PurePosixPath() else str(into))


def met_another(error: MlflowException) -> bool:
    """Return whether a call failed because another process wrote the same row at that moment.

    MLflow looks for a row and then inserts it, so that two processes may both insert it, and the database takes back
    what the later call did. The server passes on no more of that than the text of the error.
    """
    text = str(error)
    violated = any(words in text for words in ("UniqueViolation", "IntegrityError", "Duplicate entry"))
    return (violated or "deadlock" in text.lower()) and error.error_code != EXISTS


def bytes_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    sizes = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with suppress(FileNotFoundError):  # it may be renamed meanwhile
            sizes += file.stat().st_size if file.is_file() else 0
    return sizes


def within(seconds: float, call: Callable[[], Any], moved: Callable[[], object] = lambda: None) -> Any:
    """Return what `call` returns or raise what it raises.

    Args:
        moved: returns something else as long as the call gets on; then the time begins anew.

    Raises:
        StoreHangsError: the call took more than `seconds`.
    """
    answer: list[Any] = []
    fault: list[BaseException] = []

    def work() -> None:
        try:
            answer.append(call())
        except BaseException as error:
            fault.append(error)

    worker = threading.Thread(target=work, daemon=True, name="mlflow")  # a daemon, so that the process can end
    worker.start()
    before: object = None
    while worker.is_alive():
        worker.join(seconds)
        now = moved()
        if now == before:
            break
        before = now
    if fault:
        raise fault[0]
    if worker.is_alive():
        raise StoreHangsError(f"it did not answer within {seconds:.0f} seconds")
    return answer[0]


@contextmanager
def told_plainly(stands: str = KEPT, again: str = REPRO) -> Iterator[None]:
    """Turn every fault of the store into a UserError that says what `stands`, and what to do `again`."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, StoreHangsError, sqlite3.Error, OSError) as error:
        path = database_file(tracking_uri())
        fix = f"mend the store, or set MLFLOW_TRACKING_URI, then {again}"
        if path and path.is_file() and holds_no_run(path):
            fix = f"the database holds no run: delete {path}, then {again}"
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"MLflow at {tracking_uri()}: {what}", stands, fix) from error


@contextmanager
def store_alone(silent: bool = False) -> Iterator[None]:
    """Let parallel queue workers take turns, so that a new database, a new experiment and a run's key are made once."""

    def wait(holder: str) -> None:
        if not silent:
            say(f"waiting for {holder} to record")

    with alone(project_root() / SCRATCH / "track.lock", wait):
        yield


def load_monitors() -> list[Any]:
    """Return MLflow's monitors of processor, memory and GPUs, as far as this machine has what they need."""
    found: list[Any] = []
    for part, name in (("cpu", "CPUMonitor"), ("gpu", "GPUMonitor")):
        with suppress(Exception):
            found.append(getattr(import_module(f"mlflow.system_metrics.metrics.{part}_monitor"), name)())
    return found
