"""What queued experiments would lack of a raw log, and the commands that mend it: git's part, without DVC."""

import subprocess
from pathlib import Path

import pytest
from raw_logs import Ingest, csv_text, interactions, write

from pipeline.ingest.tracked import lacking

POINTER = "outs:\n- md5: 0123\n  path: x\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project = tmp_path / "project"
    write(project / "logs/part/a.csv", "user,item,time\n")
    write(project / "logs/b.csv", "user,item,time\n")
    monkeypatch.chdir(project)
    git("init", "-q")
    return project


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


@pytest.mark.parametrize("path", ["logs", "logs/", "./logs", "logs/b.csv", "logs/part"])
def test_an_untracked_path_is_lacking_and_dvc_add_mends_it(project: Path, path: str) -> None:
    missing = lacking(project, Path(path))
    plain = Path(path).as_posix()
    assert missing is not None
    assert missing.reason == f"{plain} is tracked neither by git nor by DVC"
    parent = Path(plain).parent.as_posix()
    ignored = ".gitignore" if parent == "." else f"{parent}/.gitignore"
    assert missing.cure == f"dvc add {plain} && git add {plain}.dvc {ignored}"
    write(project / f"{plain}.dvc", POINTER)  # as `dvc add` does
    write(project / ignored, f"/{Path(plain).name}\n")
    missing = lacking(project, Path(path))
    assert missing is not None
    assert missing.reason == f"git does not track {plain}.dvc"
    assert missing.cure == f"git add {plain}.dvc {ignored}"
    git("add", f"{plain}.dvc", ignored)
    assert lacking(project, Path(path)) is None


def test_a_folder_lacks_what_one_of_its_files_lacks(project: Path) -> None:
    git("add", "logs/b.csv")
    assert lacking(project, Path("logs/b.csv")) is None
    assert lacking(project, Path("logs")) is not None
    write(project / "logs/part.dvc", POINTER)
    write(project / "logs/.gitignore", "/part\n")
    assert lacking(project, Path("logs")) is not None
    git("add", "logs/part.dvc", "logs/.gitignore")
    assert lacking(project, Path("logs")) is None
    assert lacking(project, Path("logs/part/a.csv")) is None


def test_a_path_outside_the_project_or_without_git_lacks_nothing(project: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/a.csv", "x")
    assert lacking(project, tmp_path / "elsewhere") is None
    assert lacking(tmp_path / "elsewhere", Path("a.csv")) is None


def test_ingest_says_so(project: Path, ingest: Ingest, capsys: pytest.CaptureFixture[str]) -> None:
    write(project / "logs/interactions.csv", csv_text(interactions()))
    ingest("logs")
    said = "before you queue an experiment (--queue, --temp): dvc add logs && git add logs.dvc .gitignore"
    assert said in capsys.readouterr().out
    git("add", "logs")
    ingest("logs")
    assert "queue" not in capsys.readouterr().out
