"""A training is seen in MLflow while it goes on, and neither waits for the store nor is recorded twice."""

import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finished_result import write_result
from settings import read_params

from pipeline.results import live as live_module
from pipeline.results.live import Live
from pipeline.results.parameters import flatten
from pipeline.results.run_names import RunName
from pipeline.stopping import Stopped
from pipeline.track import stage

START = 1_760_000_000.25
TIMES = [START + step for step in range(200, 1601, 200)]  # of the rows that write_result writes


def rows(store: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(store)
    try:
        with connection:
            return connection.execute(sql).fetchall()
    finally:
        connection.close()


def live() -> Live:
    flat = flatten(params := read_params({}))
    return Live(flat, RunName.of(flat, params.strategies), "sidpipe")


def row(step: int) -> dict[str, float]:
    """A row of the history of finished_result.py, before it is rounded."""
    return {
        "step": step,
        "windows": step * 180,
        "train_loss": 12 - step / 200 + 1e-9,
        "valid_loss": round(11 - step / 300, 4),
        "recall_at_10": step / 20000,
        "ndcg_at_10": step / 40000,
    }


def train(*steps: int, error: BaseException | None = None) -> None:
    """A training of some validations, after which its thread has ended."""
    watched = live()
    try:
        with watched:
            watched.begin("aaaa1111bbbb2222", START)
            for step in steps:
                watched.point(row(step), START + step)
            if error:
                raise error
    except (Stopped, ValueError):
        pass
    ended(watched)


def ended(watched: Live) -> None:
    assert watched._thread
    watched._thread.join(60)
    assert not watched._thread.is_alive()


def finish(project: Path, seed: int = 1) -> None:
    """What the stage train leaves: the clock of this training beside its figures."""
    write_result(project, seed)
    clock = {"training": "aaaa1111bbbb2222", "start": START, "times": TIMES}
    (project / "reports/timings.json").write_text(json.dumps({"train_seconds": 41.5, "wall_seconds": 50.25, **clock}))


def track(**changes: Any) -> dict[str, Any]:
    return stage.run(read_params({**changes, "track": {"log_model": False}}))


def test_the_first_track_of_a_training_completes_its_run_and_later_ones_make_their_own(
    project: Path, store: Path
) -> None:
    train(200, 400)
    ((run_id, name, status),) = rows(store, "select run_uuid, name, status from runs")
    assert (name, status) == ("full t5 demo s42", "FINISHED")
    seen = "select step, timestamp, value from metrics where key = 'valid/recall_at_10' order by step"
    assert rows(store, seen) == [(200, int((START + 200) * 1000), 0.01), (400, int((START + 400) * 1000), 0.02)]
    finish(project)
    assert track()["run_id"] == run_id
    assert [(step, at) for step, at, _ in rows(store, seen)] == [(int(at - START), int(at * 1000)) for at in TIMES], (
        "each point once, at its time"
    )
    assert rows(store, "select end_time - start_time from runs") == [(50250,)]
    finish(project, seed=2)  # the same training, evaluated in another way
    second = track(evaluate={"filter_seen": True})
    assert second["run_id"] != run_id
    assert second["name"] == "full t5 demo s42 filter_seen=true"
    counts = rows(store, "select count(*) from metrics where key = 'valid/recall_at_10' group by run_uuid")
    assert counts == [(8,), (8,)]


def test_a_training_that_was_killed_is_marked_and_goes_on_in_its_run(store: Path) -> None:
    train(200, 400, error=Stopped())
    assert rows(store, "select status from runs") == [("KILLED",)]
    rows(store, "update runs set status = 'RUNNING', end_time = null")  # as kill -9 leaves it
    rows(store, "update tags set value = value || '0' where key = 'process'")  # of a process that is no more
    other = live()
    with other:
        other.begin("another", START + 1)
    ended(other)
    killed = "select status from runs join tags using (run_uuid) where key = 'ended'"
    assert rows(store, killed) == [("KILLED",)]
    train(400, 600)
    points = rows(store, "select step from metrics where key = 'train/loss' order by step")
    assert points == [(200,), (400,), (600,)]
    assert len(rows(store, "select * from runs")) == 2


def test_a_training_that_fails_is_marked(store: Path) -> None:
    train(error=ValueError())
    assert rows(store, "select status from runs") == [("FAILED",)]


def test_the_load_of_the_machine_is_shown(store: Path) -> None:
    pytest.importorskip("psutil", reason="no psutil")
    train(200)
    assert rows(store, "select key from latest_metrics where key like 'system/cpu%'")


@pytest.fixture
def hanging() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.usefixtures("project")
def test_a_store_that_hangs_delays_nothing_and_points_are_dropped(
    hanging: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", hanging)
    monkeypatch.setattr(live_module, "FAREWELL", 0.1)
    watched = live()
    began = time.monotonic()
    with watched:
        watched.begin("aaaa1111bbbb2222", START)
        for step in range(live_module.CAPACITY + 500):
            watched.point(row(step), START)
    assert time.monotonic() - began < 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("project")
def test_a_store_that_is_away_is_silent(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    train(200)
    assert capfd.readouterr() == ("", "")
