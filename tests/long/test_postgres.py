"""Runs recorded at once in MLflow's server on PostgreSQL, started with the command of deploy/compose.yaml."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from finished_result import write_result
from patience import PATIENCE, answers, wait_until

pytestmark = pytest.mark.long
psycopg = pytest.importorskip("psycopg")
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]  # PostgreSQL refuses root
TRACK = """
import sys
from settings import read_params
from pipeline.track import stage
track = {"log_model": False, "experiment": sys.argv[2]}
print(stage.run(read_params({"seed": int(sys.argv[1]), "track": track}))["run_id"])
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def programs() -> Path:
    """The folder of PostgreSQL's newest programs. Skips where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.skip("no PostgreSQL")
    return found[-1].parent


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty PostgreSQL, which runs as another user where the tests run as root."""
    here = programs()
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="sidpipe-postgres-", dir="/tmp"))  # pytest's folders are closed to others
    as_user = NOBODY if os.getuid() == 0 else []
    if as_user:
        os.chown(folder, 65534, 65534)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    try:
        initdb = [str(here / "initdb"), "-D", str(folder / "data"), "-U", "mlflow", "-A", "trust", "-E", "UTF8"]
        subprocess.run([*as_user, *initdb], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        control = [*as_user, str(here / "pg_ctl"), "-D", str(folder / "data"), "-w"]
        start = [*control, "-o", options, "-l", str(folder / "log"), "start"]
        subprocess.run(start, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        try:
            create = [str(here / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"]
            subprocess.run(create, cwd=folder, check=True)
            yield f"postgresql://mlflow@127.0.0.1:{port}/mlflow"
        finally:
            stop = [*control, "-m", "immediate", "stop"]
            subprocess.run(stop, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[str]:
    """The address of the server of compose.yaml: its command, with a folder as the object store."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    command = yaml.safe_load((root / "deploy/compose.yaml").read_text())["services"]["mlflow"]["command"]
    instead = {
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=5000": f"--port={port}",
        "--artifacts-destination=s3://mlflow": f"--artifacts-destination={(folder / 'objects').as_uri()}",
    }
    assert set(instead) <= set(command)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    process = subprocess.Popen(
        [sys.executable, "-m", *(instead.get(part, part) for part in command)],
        cwd=folder,
        env=environment | {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_DISABLE_TELEMETRY": "true"},
        start_new_session=True,
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_server(address, process, folder / "log")
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


def wait_for_server(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    health = f"{address}/health"
    wait_until(lambda: answers(health), "the server does not answer", look=0.5, alive=process, output=log.read_text)


def project(folder: Path, seed: int) -> Path:
    """A project in a separate folder with a finished result."""
    for name in (".dvc", "reports", "data/interactions", "data/sids", "models/generator"):
        (folder / name).mkdir(parents=True)
    (folder / "params.yaml").write_text(f"seed: {seed}\n")
    (folder / "models/generator/model.safetensors").write_bytes(b"weights")
    (folder / "data/interactions/ingest.json").write_text('{"users": 2000, "items": 1000, "interactions": 41234}')
    write_result(folder, seed=seed)
    return folder


# Each new row of what several runs share takes so long that runs recorded at once write the same row at once.
SHARED = {
    "experiments": "true",
    "experiment_tags": "true",
    "datasets": "true",
    "tags": "new.key in ('mlflow.parentRunId', 'mlflow.note.content', 'seeds', 'run_kind')",
}
SLOW = "create function slow() returns trigger as $$ begin perform pg_sleep(0.3); return new; end $$ language plpgsql"


@pytest.fixture
def slow_database(database: str) -> Iterator[None]:
    """Let the database take its time over the rows that runs share."""
    from mlflow import MlflowClient

    MlflowClient(database).search_experiments()  # it makes the tables
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(SLOW)
        for table, which in SHARED.items():
            connection.execute(
                f"create trigger slow before insert on {table} for each row when ({which}) execute function slow()"
            )
        try:
            yield
        finally:
            connection.execute("drop function slow cascade")


@pytest.mark.parametrize("through", ["database", "server"])
@pytest.mark.usefixtures("slow_database")
def test_runs_that_share_all_rows_are_recorded_at_once(
    through: str, request: pytest.FixtureRequest, tmp_path: Path, root: Path
) -> None:
    from mlflow import MlflowClient

    address: str = request.getfixturevalue(through)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
    environment |= {
        "MLFLOW_TRACKING_URI": address,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests/support"), os.environ.get("PYTHONPATH", "")]),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    recording = [
        subprocess.Popen(
            [sys.executable, "-c", TRACK, str(seed), through],
            cwd=project(tmp_path / f"project{seed}", seed),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2, 3)
    ]
    told = [process.communicate(timeout=PATIENCE) for process in recording]
    assert [process.returncode for process in recording] == [0, 0, 0], told
    ids = {out.split()[-1] for out, _ in told}
    client = MlflowClient(address)
    (experiment,) = client.search_experiments(filter_string=f"name = '{through}'")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    (parent,) = runs.keys() - ids  # one run has the mean of all three
    assert runs[parent].data.tags["seeds"] == "1, 2, 3"
    seconds = [runs[name].data.metrics["cost/train_seconds"] for name in ids]
    assert runs[parent].data.metrics["cost/train_seconds"] == pytest.approx(sum(seconds) / 3)
    assert [runs[name].info.status for name in runs] == ["FINISHED"] * 4
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in ids} == {parent}
    assert min(len(runs[name].data.metrics) for name in ids) > 20
