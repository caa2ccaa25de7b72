"""Where a result comes from."""

import subprocess
from pathlib import Path

import pytest

from pipeline.track.provenance import provenance


@pytest.fixture
def git(project: Path) -> Path:
    """The project as a git repository with one commit."""
    for command in (
        ["init", "-q"],
        ["config", "user.email", "test@example.org"],
        ["config", "user.name", "Test"],
        ["add", "-A"],
        ["commit", "-q", "-m", "Start"],
    ):
        subprocess.run(["git", *command], cwd=project, check=True)
    return project


@pytest.mark.usefixtures("git")
def test_a_clean_commit_is_named() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    tags = provenance()
    assert tags["git_commit"] == tags["mlflow.source.git.commit"] == head
    assert (tags["git_dirty"], tags["dvc_experiment"], tags["dvc_baseline"]) == ("false", "", "")


def test_code_alone_makes_dirty_and_neither_results_nor_parameters_do(git: Path) -> None:
    for name in ("dvc.lock", "reports/metrics.json", "new_file.txt", "params.yaml"):
        (git / name).write_text("changed: 7\n")
    assert provenance()["git_dirty"] == "false"
    (git / "pipeline/strategies/mine").mkdir(parents=True)
    (git / "pipeline/strategies/mine/__init__.py").write_text("SPEC = None\n")
    assert provenance()["git_dirty"] == "true"


@pytest.mark.usefixtures("git")
def test_the_experiment_is_the_one_that_dvc_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brave-hare")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    assert provenance()["dvc_experiment"] == "brave-hare"
    assert provenance()["dvc_baseline"] == "abc"


@pytest.mark.usefixtures("project")
def test_without_git_there_is_no_commit() -> None:
    assert provenance()["git_commit"] == ""
