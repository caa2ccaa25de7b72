"""A store of artifacts that hangs is given up, whatever is on its way: files of the report, the model, a promotion."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluated_world import World, stored_world
from finished_result import write_result

from pipeline.errors import UserError
from pipeline.results import mlflow_client, registry
from pipeline.results.mlflow_client import MlflowClient
from pipeline.results.mlflow_model import MODEL_HASH, log_model
from pipeline.results.registry import download_version, register

pytestmark = pytest.mark.long


@dataclass
class Artifacts:
    """A server of artifacts in memory, which never answers a request whose path holds one of the words `hangs`."""

    address: str = ""
    hangs: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if any(word in handler.path for word in self.hangs):
            self.over.wait(120)
            return
        path, _, query = handler.path.partition("?")
        if handler.command == "PUT":
            self.files[path] = body
        content = self.files.get(path, b'{"files": []}' if query else b"")
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


@pytest.fixture
def artifacts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Artifacts]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    state = Artifacts()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            state.answer(self)

        do_GET = do_PUT = _any

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        state.address = f"http://127.0.0.1:{http.server_port}/api/2.0/mlflow-artifacts/artifacts/1"
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        yield state
        state.over.set()
        http.shutdown()


def test_track_ends_by_itself_and_the_result_stays(
    project: Path, store: Path, root: Path, artifacts: Artifacts
) -> None:
    """As a command: no thread that still waits for the server keeps the process."""
    MlflowClient(f"sqlite:///{store}").create_experiment("sidpipe", artifacts.address)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["track"] |= {"log_model": False}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    write_result(project, seed=1)
    artifacts.hangs = ("metrics.json",)
    command = [sys.executable, "-m", "pipeline", "track"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - began < mlflow_client.PATIENCE + 45  # the start of Python on a busy machine
    assert "did not answer within 30 seconds" in done.stderr
    assert "the result is complete in reports/" in done.stderr
    assert "Traceback" not in done.stderr
    assert (project / "reports/index.html").exists()
    artifacts.hangs = ()
    again = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "full t5 demo s42 recorded" in again.stdout
    client = MlflowClient(f"sqlite:///{store}")
    assert [run.info.status for run in client.search_runs(["1"])] == ["FINISHED"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings_given_back: None) -> World:  # noqa: ARG001
    return stored_world(tmp_path / "project", monkeypatch)


def test_a_model_is_given_up_on_its_way_there_and_back(
    world: World, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = MlflowClient()
    experiment = client.create_experiment("sidpipe", artifacts.address)
    run = client.create_run(experiment)
    folders: Any = {"generator": world.paths["generator"], "splits": world.paths["splits"]}

    def log() -> str:
        return log_model(run.info.run_id, experiment, ranks=None, tags={}, **folders)

    artifacts.hangs = ("model.safetensors",)
    with monkeypatch.context() as patch:  # a store that answers has all its time
        patch.setattr(mlflow_client, "UPLOAD_RATE", 1e9)
        patch.setattr(mlflow_client.Patient.__init__, "__defaults__", (3.0,))
        with pytest.raises(UserError, match="did not answer within 3 seconds") as caught:
            log()
    assert "its run is recorded, only the model is missing" in caught.value.why
    artifacts.hangs = ()
    model = log()
    assert [found.model_id for found in client.search_logged_models([experiment])] == [model]
    tags = client.get_logged_model(model).tags
    version = register("shop", "sidpipe", tags[MODEL_HASH], drop_seen=False)
    assert any(path.endswith("model.safetensors") for path in artifacts.files)
    artifacts.hangs = ("/models/",)
    monkeypatch.setattr(registry, "PATIENCE", 1.0)
    with pytest.raises(UserError, match="did not answer within 1 seconds") as caught:
        download_version(version, tmp_path / "copy")
    assert "run the same command again" in caught.value.fix
