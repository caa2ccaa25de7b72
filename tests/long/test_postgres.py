"""Runs recorded at once in MLflow's server on PostgreSQL, started with the command of deploy/compose.yaml."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from finished_result import write_result

pytestmark = pytest.mark.long
pytest.importorskip("psycopg")
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]  # PostgreSQL refuses root
TRACK = """
import sys
from settings import read_params
from pipeline.track import stage
print(stage.run(read_params({"seed": int(sys.argv[1]), "track": {"log_model": False}}))["run_id"])
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
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
    raise AssertionError("the server does not answer")


def project(folder: Path, seed: int) -> Path:
    """A project in a separate folder with a finished result."""
    for name in (".dvc", "reports", "data/interactions", "data/sids", "models/generator"):
        (folder / name).mkdir(parents=True)
    (folder / "params.yaml").write_text(f"seed: {seed}\n")
    (folder / "models/generator/model.safetensors").write_bytes(b"weights")
    (folder / "data/interactions/ingest.json").write_text('{"users": 2000, "items": 1000, "interactions": 41234}')
    write_result(folder, seed=seed)
    return folder


@pytest.mark.parametrize("through", ["database", "server"])
def test_two_runs_are_recorded_at_once(
    through: str, request: pytest.FixtureRequest, tmp_path: Path, root: Path
) -> None:
    address: str = request.getfixturevalue(through)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
    environment |= {
        "MLFLOW_TRACKING_URI": address,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests/support"), os.environ.get("PYTHONPATH", "")]),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }

    def start(seed: int) -> "subprocess.Popen[str]":
        folder = project(tmp_path / f"project{seed}", seed)
        return subprocess.Popen(
            [sys.executable, "-c", TRACK, str(seed)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_id(process: "subprocess.Popen[str]") -> str:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return out.split()[-1]

    ids = {run_id(start(1))}  # it makes the experiment
    ids |= {run_id(process) for process in [start(2), start(3)]}
    from mlflow import MlflowClient

    client = MlflowClient(address)
    for name in ids:
        run = client.get_run(name)
        assert run.info.status == "FINISHED"
        assert len(run.data.metrics) > 20
        client.delete_run(name)  # so that the same results are new to the next test
    assert len(ids) == 3
