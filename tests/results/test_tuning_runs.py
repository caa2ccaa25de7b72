"""A search in MLflow: a parent, a child per trial, each once however often it is recorded."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.results.mlflow_client import open_store
from pipeline.results.tuning_runs import record_search

Finished = tuple[str, int, dict[str, Any], dict[str, Any]]
pytestmark = pytest.mark.slow


def test_a_search_that_goes_on_adds_its_trials_and_repeats_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    rows = [{"step": 10, "windows": 70, "recall_at_10": 0.01}, {"step": 20, "windows": 150, "recall_at_10": 0.04}]
    first: Finished = ("a", 0, {}, {"value": 0.04, "history": rows})
    second: Finished = ("b", 1, {"train.ema": 0.9}, {"value": 0.02, "history": rows[:1]})
    record_search("tuned", "key", "tune space", [first])
    record_search("tuned", "key", "tune space", [first, second])
    record_search("tuned", "key", "tune space", [second, first])
    record_search("tuned", "key", "tune other", [first, ("c", 1, {"train.ema": 0.8}, {"value": 0.03, "history": rows})])
    client = open_store()
    everything = client.search_runs([client.get_experiment_by_name("tuned").experiment_id])
    names = [f"tune {space}{trial}" for space in ("other", "space") for trial in ("", ", trial 0", ", trial 1")]
    assert sorted(run.info.run_name for run in everything) == names
    of_other = next(run.info.run_id for run in everything if run.info.run_name == "tune other")
    runs = [run for run in everything if run.info.run_name.startswith("tune space")]
    below = [run.info.run_name for run in everything if run.data.tags.get("mlflow.parentRunId") == of_other]
    assert sorted(below) == ["tune other, trial 0", "tune other, trial 1"]
    by_name = {run.info.run_name: run for run in runs}
    parent = by_name["tune space"].info.run_id
    for name, (_, _, changes, result) in (("tune space, trial 0", first), ("tune space, trial 1", second)):
        run = by_name[name]
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.data.params == {key: str(value) for key, value in changes.items()}
        assert run.data.metrics["best"] == result["value"]
        points = client.get_metric_history(run.info.run_id, "validation/recall_at_10")
        assert [(point.step, point.value) for point in points] == [
            (row["step"], row["recall_at_10"]) for row in result["history"]
        ]
        assert run.info.status == "FINISHED"
