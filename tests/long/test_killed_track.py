"""`kill -9` of the first `track`, which makes MLflow's database, and of a `train` that is shown live."""

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from finished_result import write_result
from patience import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.long


def rows(store: Path, sql: str) -> list[Any]:
    with sqlite3.connect(store, timeout=PATIENCE) as database:
        return database.execute(sql).fetchall()


def begin(project: Path, *command: str) -> subprocess.Popen[bytes]:
    with (project / "log").open("ab") as log:
        arguments = [sys.executable, "-m", "pipeline", *command]
        return subprocess.Popen(arguments, cwd=project, stdout=log, stderr=log, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def kill_track_after(reached: "Callable[[], bool]", project: Path, seconds: float) -> None:
    """Start `track`, and kill it some seconds after it has reached a moment or has ended."""
    process = begin(project, "track")
    log = (project / "log").read_text
    wait_until(lambda: reached() or process.poll() is not None, "track stands still", look=0.01, output=log)
    time.sleep(seconds)
    kill(process)


def set_params(project: Path, root: Path, **sections: dict[str, Any]) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    for section, values in sections.items():
        params[section] |= values
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def test_a_first_track_that_is_killed_leaves_no_half_database(project: Path, root: Path) -> None:
    """At once, while the tables are made beside, and when the run is being written."""
    set_params(project, root, track={"log_model": False})
    write_result(project, seed=1)
    rng = random.Random(0)
    store = project / "mlflow.db"
    moments: dict[str, Callable[[], bool]] = {
        "beside": lambda: bool(list(project.glob("mlflow.db.*.partial"))),
        "there": store.exists,
        "a run": lambda: store.exists() and bool(rows(store, "select 1 from runs")),
    }
    for name, reached in moments.items():
        for path in project.glob("mlflow.db*"):
            path.unlink()
        shutil.rmtree(project / "mlartifacts", ignore_errors=True)
        kill_track_after(reached, project, rng.uniform(0, 0.3))
        if name == "beside":
            assert not store.exists() or rows(store, "select count(*) from alembic_version") == [(1,)]
        assert begin(project, "track").wait(PATIENCE) == 0, (project / "log").read_text()
        assert rows(store, "select status from runs") == [("FINISHED",)]
        assert len(rows(store, "select * from metrics where key = 'train/loss'")) == 8
        assert not list(project.glob("mlflow.db.*")), "nothing is left beside the database"


SMALL: dict[str, dict[str, Any]] = {
    "train": {
        "max_windows": 300_000,
        "batch_tokens": 1024,
        "validate_every": 20,
        "checkpoint_every": 20,
        "threads": 1,
        "compile": False,
    },
    "backbone": {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "d_model": 16,
        "heads": 2,
        "d_head": 8,
        "d_ff": 32,
    },
    "embed": {"dimensions": 16},
    "quantize": {"codes": 8, "iterations": 10, "max_collision_rate": 1.0},
    "track": {"live": True},
}


def test_a_train_that_is_killed_is_marked_by_the_next_command_and_goes_on(tmp_path: Path, root: Path) -> None:
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    shutil.copytree(root / "data/demo", project / "data/demo")
    shutil.copytree(root / "presets", project / "presets")
    shutil.copy(root / "dvc.yaml", project)
    scenario = project / "data/demo/scenario.yaml"
    scenario.write_text(scenario.read_text().replace("users: 2000", "users: 300").replace("items: 1000", "items: 100"))
    set_params(project, root, **SMALL)
    for stage in ("check", "ingest", "embed", "split", "quantize"):
        assert begin(project, stage).wait(PATIENCE) == 0, (project / "log").read_text()
    store = project / "mlflow.db"
    process = begin(project, "train")
    points = "select step from metrics where key = 'valid/recall_at_10' order by step"
    wait_for = partial(wait_until, look=0.2, output=(project / "log").read_text)
    wait_for(lambda: store.exists() and len(rows(store, points)) > 1, "no two points are seen", alive=process)
    kill(process)
    first = rows(store, points)
    assert len(first) > 1, "points are seen while training goes on"
    ((mine, status),) = rows(store, "select run_uuid, status from runs")
    assert status == "RUNNING"
    # Another training marks the dead one; the same training goes on in its own run.
    set_params(project, root, **{**SMALL, "train": {**SMALL["train"], "max_windows": 299_000}})
    other = begin(project, "train")
    # The tag is written before the status.
    killed = "select status, value from runs join tags using (run_uuid) where key = 'ended' and status != 'RUNNING'"
    wait_for(lambda: rows(store, killed), "the dead run is not marked", alive=other)
    assert [(status, "died" in text) for status, text in rows(store, killed)] == [("KILLED", True)]
    other.send_signal(signal.SIGTERM)
    assert other.wait(PATIENCE) == 143
    set_params(project, root, **SMALL)
    process = begin(project, "train")
    of_mine = points.replace(" order", f" and run_uuid = '{mine}' order")  # the other training may have come further
    wait_for(lambda: rows(store, of_mine)[-1] > first[-1], "no further point is seen", alive=process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 143
    assert "resumed at step" in (project / "log").read_text()
    runs = rows(store, "select run_uuid from runs")
    assert len(runs) == 2, "the training that went on has its run again"
    steps = [step for (step,) in rows(store, of_mine)]
    assert len(steps) == len(set(steps)), "each point once"
