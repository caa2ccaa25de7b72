"""MLflow holds exactly one complete run per result, wherever and however often it is made or restored."""

import json
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from finished_result import write_result
from settings import read_params, some_params

from pipeline.errors import UserError
from pipeline.project import project_root
from pipeline.results.parameters import flatten
from pipeline.results.tracking_uri import tracking_uri
from pipeline.track import stage


def rows(store: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(store)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def everything(store: Path) -> dict[str, list[Any]]:
    tables = ("experiments", "runs", "tags", "params", "metrics", "latest_metrics", "datasets", "inputs")
    return {table: rows(store, f"select * from {table}") for table in tables}


def track(**changes: Any) -> dict[str, Any]:
    """Without the model, which tests/long/test_served_model.py logs: writing it takes seconds."""
    return stage.run(read_params({**changes, "track": {"log_model": False, **changes.get("track", {})}}))


def test_the_same_result_again_changes_nothing(store: Path) -> None:
    first = track()
    before = everything(store)
    again = track()
    assert (first["new"], again["new"]) == (True, False)
    assert again["run_id"] == first["run_id"]
    assert everything(store) == before


@pytest.mark.usefixtures("store")
def test_a_repeat_that_took_longer_is_the_same_result(project: Path) -> None:
    first = track()
    write_result(project, seed=1, train_seconds=999.0)
    assert track()["run_id"] == first["run_id"]


def test_another_result_is_another_run_and_coming_back_finds_the_first(project: Path, store: Path) -> None:
    first = track()
    write_result(project, seed=2, model_hash="bb22")
    second = track(seed=7)
    write_result(project, seed=1)
    assert track()["run_id"] == first["run_id"] != second["run_id"]
    assert (first["name"], second["name"]) == ("full t5 demo s42", "full t5 demo s7")
    assert len(rows(store, "select * from tags where key = 'result_key'")) == 2


def test_a_recording_that_was_killed_is_completed_without_repeats(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", killed)
        with pytest.raises(KeyboardInterrupt):
            track()
    assert rows(store, "select status from runs") == [("RUNNING",)]
    track()
    once = everything(store)
    assert rows(store, "select status from runs") == [("FINISHED",)]
    assert len(once["metrics"]) == len(set(once["metrics"]))
    assert len(rows(store, "select * from metrics where key = 'train/loss'")) == 8


def test_a_run_holds_parameters_curves_numbers_tags_and_data(project: Path, store: Path) -> None:
    metrics = json.loads((project / "reports/metrics.json").read_text())
    track(dataset="custom", ingest={"path": "logs", "columns": {"user": "member"}})
    params = dict(rows(store, "select key, value from params"))
    assert params["ingest.columns"] == '{"user": "member"}'
    assert params["embed.template"] == '["{title}", "{categories}", "{description}"]'
    assert params["split.valid_from"] == ""
    latest = dict(rows(store, "select key, value from latest_metrics"))
    assert latest["test/recall_at_10"] == metrics["recall_at_10"]
    assert latest["baseline/cooccurrence_ndcg_at_10"] == metrics["cooccurrence_ndcg_at_10"]
    assert latest["cost/train_seconds"] == metrics["train_seconds"]
    assert rows(store, "select key from latest_metrics limit 2") == [("test/recall_at_10",), ("test/ndcg_at_10",)]
    curve = rows(store, "select step, value from metrics where key = 'valid/recall_at_10' order by step")
    assert curve == [(step, step / 20000) for step in range(200, 1601, 200)]
    tags = dict(rows(store, "select key, value from tags"))
    assert tags["hash_model"] == "aa11"
    assert (tags["dataset"], tags["strategy"], tags["seed"]) == ("custom", "full", "42")
    assert (tags["data"], tags["backbone"], tags["run_kind"]) == ("logs", "t5", "result")
    assert "| full, seen included | " in tags["mlflow.note.content"]
    (dataset,) = rows(store, "select name, digest, dataset_profile from datasets")
    assert dataset == ("logs", "c0ffee", '{"users": 2000, "items": 1000, "interactions": 41234}')
    ((uri,),) = rows(store, "select artifact_uri from runs")
    found = {str(path.relative_to(urlparse(uri).path)) for path in Path(urlparse(uri).path).rglob("*.*")}
    assert {
        "report/index.html",
        "report/curve.svg",
        "report/metrics.json",
        "pipeline/dvc.lock",
        "pipeline/params.yaml",
    } <= found


def test_runs_that_were_tested_alike_are_drawn_in_the_later_one(project: Path, store: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"strategy": "rastp"}, {"evaluate": {"beam": 50}}]
    for number, change in enumerate(changes):
        write_result(project, seed=number, model_hash=f"{number:04}", train_seconds=10.0 * number + 10)
        track(**change)
    notes = dict(rows(store, "select r.name, t.value from runs r join tags t using (run_uuid) where key like '%note%'"))
    folders = dict(rows(store, "select name, artifact_uri from runs"))
    drawn = {name: Path(urlparse(uri).path) / "report/frontier.svg" for name, uri in folders.items()}
    assert {name for name, path in drawn.items() if path.exists()} == {"rastp t5 demo s42"}
    assert {name for name, note in notes.items() if "frontier.svg" in note} == {"rastp t5 demo s42"}
    texts = drawn["rastp t5 demo s42"].read_text()
    assert all(word in texts for word in ("full t5", "rastp t5", "co-occurrence", "http://www.w3.org/2000/svg"))


def test_the_model_may_stay_out(store: Path) -> None:
    track()
    assert not rows(store, "select * from logged_models")


def test_a_queued_run_records_into_the_project_and_not_into_its_own_copy(
    project: Path, store: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(project))
    copy = tmp_path_factory.mktemp("queue") / "copy"
    project.rename(copy)
    project.mkdir()
    (copy / "mlflow.db").rename(store)
    monkeypatch.chdir(copy)
    track()
    ((uri,),) = rows(store, "select artifact_uri from runs")
    assert Path(urlparse(uri).path).is_relative_to(project / "mlartifacts")
    assert not (copy / "mlflow.db").exists()


def test_a_result_met_again_as_an_experiment_gets_its_name(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    track()
    monkeypatch.setenv("DVC_EXP_NAME", "brave-hare")
    track()
    monkeypatch.setenv("DVC_EXP_NAME", "later-name")
    track()
    assert rows(store, "select value from tags where key = 'dvc_experiment'") == [("brave-hare",)]


def test_a_deleted_experiment_is_told(store: Path) -> None:
    track()
    connection = sqlite3.connect(store)
    connection.execute("update experiments set lifecycle_stage = 'deleted'")
    connection.commit()
    connection.close()
    with pytest.raises(UserError, match="the MLflow experiment 'sidpipe' was deleted"):
        track()


def test_a_store_that_cannot_be_used_costs_only_the_record(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(UserError, match="MLflow at nonsense://nowhere") as caught:
        track()
    assert "the result is complete in reports/" in caught.value.why
    assert (project / "reports/index.html").exists()


def test_a_file_that_is_no_database_is_told(project: Path) -> None:
    (project / "mlflow.db").write_text("this is no database")
    with pytest.raises(UserError, match=r"mlflow\.db: file is not a database"):
        track()


@pytest.mark.usefixtures("store")
def test_the_terminal_shows_the_result_and_the_way_to_all_runs(
    project: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    track(seed=3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "strategy full, dataset demo, seed 3"
    assert lines[-2].endswith(f"/mlflow ui --backend-store-uri sqlite:///{project}/mlflow.db")
    assert Path(lines[-2].split()[0]).is_file()
    page = "/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=sidpipe"
    assert lines[-1] == f"then open http://127.0.0.1:5000{page}"
    assert any(line.startswith("co-occurrence ") for line in lines)
    assert "report: reports/index.html" in lines


def test_the_store_is_where_the_environment_says_or_in_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(project / "deep/er")
    assert tracking_uri() == f"sqlite:///{project}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert project_root() == Path("/elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert tracking_uri() == "http://localhost:5000"


def test_flat_parameters_are_the_keys_of_params_yaml() -> None:
    flat = flatten(some_params())
    assert (flat["seed"], flat["train.beam"], flat["ingest.minimum"]) == (42, 10, {})
    assert not [key for key in flat if key.count(".") > 1]


def names(store: Path) -> list[str]:
    return [name for (name,) in rows(store, "select name from runs order by rowid")]


def test_a_run_is_named_by_what_differs(project: Path, store: Path) -> None:
    """The first run of strategy, network, data and seed has the short name, whatever its settings."""
    changes: list[dict[str, Any]] = [
        {},
        {"evaluate": {"filter_seen": True}},
        {"strategy": "rastp", "rastp": {"keep": 0.5}},
        {"strategy": "rastp", "rastp": {"keep": 0.25}, "train": {"beam": 20, "patience": 3, "ema": 0.9}},
        {"intrr": {"alignment": 9.0}},
        {"backbone": {"name": "decoder"}},
        {"dataset": "custom", "ingest": {"path": "../shared/beauty"}},
        {"track": {"dataset_name": "shop"}, "train": {"threads": 7}},
    ]
    for number, change in enumerate(changes):
        write_result(project, seed=number, model_hash=f"{number:04}")
        track(**change)
    keys = [key for (key,) in rows(store, "select value from tags where key = 'result_key' order by rowid")]
    assert names(store) == [
        "full t5 demo s42",
        "full t5 demo s42 filter_seen=true",
        "rastp t5 demo s42",
        "rastp t5 demo s42 keep=0.25 beam=20 ema=0.9 +1",
        f"full t5 demo s42 #{keys[4][:6]}",
        "full decoder demo s42",
        "full t5 beauty s42",
        "full t5 shop s42",
    ]


def test_seeds_of_one_setting_stand_under_their_mean(project: Path, store: Path) -> None:
    recalls = []
    for number, seed in enumerate((1, 2, 2, 3)):
        metrics = write_result(project, seed=number, model_hash=f"{number:04}", train_seconds=10.0 * number + 10)
        recalls.append(metrics["recall_at_10"])
        track(seed=seed)
    ((parent, name),) = rows(
        store, "select r.run_uuid, r.name from runs r join tags t using (run_uuid) where t.value = 'seeds'"
    )
    assert name == "full t5 demo, 3 seeds"
    children = rows(store, f"select run_uuid from tags where key = 'mlflow.parentRunId' and value = '{parent}'")
    assert len(children) == 4
    latest = dict(rows(store, f"select key, value from latest_metrics where run_uuid = '{parent}'"))
    counted = [recalls[0], recalls[2], recalls[3]]
    assert latest["test/recall_at_10"] == pytest.approx(sum(counted) / 3)
    assert latest["cost/train_seconds"] == pytest.approx(80 / 3)
    half = 4.302653 * np.std(counted, ddof=1) / 3**0.5  # Student's t of two degrees of freedom, from a table
    assert latest["test/recall_at_10_high"] == pytest.approx(sum(counted) / 3 + half)
    before = everything(store)
    track(seed=3)
    assert everything(store) == before


@pytest.mark.usefixtures("store")
def test_the_ranks_of_users_stay_here_unless_the_user_says_so(project: Path) -> None:
    (project / "reports/ranks.parquet").write_bytes(b"a row per user")
    for number, leave in enumerate((False, True)):
        write_result(project, seed=number, model_hash=f"{number:04}")
        run = track(track={"user_ids": leave})
        assert (project / "mlartifacts" / run["run_id"] / "artifacts/report/ranks.parquet").exists() == leave


def test_the_experiment_says_how_its_table_opens(store: Path) -> None:
    track()
    tags = dict(rows(store, "select key, value from experiment_tags"))
    view = json.loads(tags["mlflow.sharedViewState.sidpipe"])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`test/recall_at_10`", False)
