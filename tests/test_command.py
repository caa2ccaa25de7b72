"""`sidpipe` as a command: from any folder of the project, quiet or verbose, with its version and completion."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Done
from command_line import project as project
from command_line import run as run

from pipeline import __version__, printing
from pipeline.cli import folders
from pipeline.cli.answers import answer
from pipeline.errors import UserError
from pipeline.progress import Progress


@pytest.fixture
def below(project: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder two levels below a project, as the current one."""
    shutil.copy(root / "dvc.yaml", project)
    shutil.copytree(root / "data/demo", project / "data/demo")
    folder = project / "logs" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("below")
def test_a_command_works_in_the_folder_of_the_project_above(project: Path, run: Callable[..., Done]) -> None:
    done = run("check")
    assert (done.code, done.err) == (0, "")
    assert (project / "data/checked.txt").is_file()
    assert not (project / "logs/mine/data").exists()


@pytest.mark.usefixtures("project")
def test_without_a_graph_above_a_command_stays_where_it_is(tmp_path: Path) -> None:
    folders.enter_project()
    assert Path.cwd() == tmp_path


def test_paths_of_one_command_are_relative_to_where_it_was_typed(below: Path, project: Path) -> None:
    (below / "reports").mkdir()
    folders.enter_project()
    assert Path.cwd() == project
    assert folders.typed_path(Path("reports")) == Path("logs/mine/reports")
    assert folders.typed_path(Path("/tmp/model")) == Path("/tmp/model")
    assert folders.typed_path(Path("~/model")) == Path.home() / "model"
    runs = ["reports", "main", "a=reports,jaggy-yobs", "workspace"]
    assert folders.typed_runs(runs) == ["logs/mine/reports", "main", "a=logs/mine/reports,jaggy-yobs", "workspace"]


def test_a_folder_that_is_gone_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    folders.enter_project()


@pytest.mark.usefixtures("below")
@pytest.mark.parametrize("arguments", [["-q", "check"], ["check", "--quiet"], ["preset", "skipgr", "-q"]])
def test_quiet_leaves_out_what_was_done(arguments: list[str], run: Callable[..., Done]) -> None:
    assert run(*arguments) == Done(0, "", "")
    assert run("check").out, "the next command is not quiet"


@pytest.mark.usefixtures("project")
def test_quiet_prints_answers_and_errors(run: Callable[..., Done]) -> None:
    assert "rkmeans-64x3" in run("preset", "-q").out
    assert run("preset", "nothing", "-q").err.startswith("error: ")


def test_quiet_has_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        printing.be_quiet(quiet)
        with Progress("train", 10, "windows"):
            pass
        assert capsys.readouterr().err == "" or not quiet


@pytest.mark.usefixtures("below")
def test_verbose_says_time_memory_and_folder(project: Path, run: Callable[..., Done]) -> None:
    (line,) = run("check", "-v").err.splitlines()
    assert line.startswith("check: ")
    assert line.endswith(f" MiB, in {project}")


def test_an_option_of_every_command_behind_two_dashes_is_none() -> None:
    from pipeline.cli import _common_first

    assert _common_first(["compare", "-v", "--", "-q"]) == ["-v", "compare", "--", "-q"]


def test_the_version_is_that_of_the_package(run: Callable[..., Done]) -> None:
    assert run("--version").out == f"sidpipe {__version__}\n"


def test_a_shell_completes_commands(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'sidpipe'; from pipeline.__main__ import start; start()"],
        cwd=root,
        env={**os.environ, "_SIDPIPE_COMPLETE": "complete_bash", "COMP_WORDS": "sidpipe re", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["recommend"]


def test_no_color_means_no_color(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--help"],
        cwd=root,
        env={**os.environ, "NO_COLOR": "1", "FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert "recommend" in done.stdout
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", done.stdout)


def test_json_has_letters_as_they_are_on_a_stream_that_can_print_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        encoding = "UTF-8"

    monkeypatch.setattr(sys, "stdout", Stream)
    assert printing.json_text({"title": "Étoile \u202e"}) == '{\n  "title": "Étoile \u202e"\n}'
    monkeypatch.setattr(Stream, "encoding", "ascii")
    assert json.loads(printing.json_text(["Étoile"])) == ["Étoile"]
    assert printing.json_text(["Étoile"]).isascii()


def test_an_answer_goes_into_the_file_that_was_named(below: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.enter_project()
    printing.be_quiet(False)
    answer('["Étoile\u202e"]', Path("new/answer.json"))
    assert capsys.readouterr().out == "written: logs/mine/new/answer.json\n"
    text = (below / "new/answer.json").read_text(encoding="utf-8")
    assert text == '["Étoile\\u202e"]\n'
    assert json.loads(text) == ["Étoile\u202e"]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("command", [["recommend", "--user", "u1"], ["sids", "--item", "v1"], ["gradients"]])
def test_a_folder_without_a_model_is_named(command: list[str], run: Callable[..., Done]) -> None:
    done = run(*command, "--model", "presets")
    assert done.code == 1
    assert done.err.startswith("error: presets holds no trained model, config.json is not there")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("options", [[], ["--item", "v1", "--user", "u1"], ["--user", "u1", "--history", "v1"]])
def test_sids_takes_an_item_or_a_user_or_a_history(options: list[str], run: Callable[..., Done]) -> None:
    done = run("sids", *options)
    assert (done.code, done.err.splitlines()[0]) == (1, "error: give one of --item, --user and --history")


def test_an_answer_needs_a_file(below: Path) -> None:
    with pytest.raises(UserError, match=f"{below.name} is a folder"):
        answer("text", below)
