"""The dense retriever under DVC: another strategy takes it from the cache, and a project can do without."""

import json
from collections.abc import Iterator

import pytest
from project_folder import Repository, stages_run

SMALL = ["dim=16", "layers=1", "max_epochs=2", "batch_items=512", "threads=1"]


@pytest.fixture
def forgotten(repository: Repository) -> Iterator[Repository]:
    """The project after its first run. Experiments begun here leave no columns in the tables of other tests."""
    yield repository
    repository.run("dvc", "exp", "remove", "small", "skipped", "without")


@pytest.mark.long
def test_no_strategy_trains_the_retriever_again(forgotten: Repository) -> None:
    repository = forgotten
    settings = [part for key in ("enabled=true", *SMALL) for part in ("-S", f"dense.{key}")]
    assert stages_run(repository.run("dvc", "exp", "run", "-n", "small", *settings)) == [
        "check",
        "dense",
        "evaluate",
        "track",
    ]
    metrics = json.loads((repository.path / "reports/metrics.json").read_text())
    assert 0 < metrics["dense_recall_at_10"] < 1
    assert "dense retriever, seen" in (repository.path / "reports/index.html").read_text()
    before = repository.outputs()["models/dense"]
    again = repository.run(
        "dvc", "exp", "run", "-n", "skipped", "-S", "strategy=skipgr", "-S", "train.learning_rate=0.002"
    )
    assert stages_run(again) == ["check", "train", "evaluate", "track"]
    assert repository.outputs()["models/dense"] == before
    without = repository.run("dvc", "exp", "run", "-n", "without", "-S", "dense.enabled=false")
    assert "train" not in stages_run(without)
    assert "dense_recall_at_10" not in json.loads((repository.path / "reports/metrics.json").read_text())
