"""The command line: quick to answer, three plain lines on a mistake, recipes that keep params.yaml readable."""

import contextlib
import errno
import io
import itertools
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Done
from command_line import project as project
from command_line import run as run
from settings import read_params
from synthetic_runs import ranks_of, write_run

from pipeline import cli
from pipeline.cli.help import flowing
from pipeline.doctor import check_identity, check_raw_log
from pipeline.errors import UserError

STAGES = ("check", "ingest", "embed", "split", "count", "quantize", "train", "dense", "evaluate", "track")
OTHERS = ("fetch", "preset", "migrate", "doctor", "recommend", "explain", "sids", "compare", "gradients")
HEAVY = ("torch", "pandas", "mlflow", "transformers", "duckdb", "ibis", "sklearn", "matplotlib", "pyarrow")


# ---------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy_and_answers_at_once(arguments: list[str], root: Path) -> None:
    code = (
        "import sys; from pipeline.cli import app\n"
        f"try: app({arguments!r})\n"
        f"except SystemExit: print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    before = _seconds_of_children()
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert _seconds_of_children() - before < 3  # 0.25 s on an idle machine


def _seconds_of_children() -> float:
    """Processor time, which other tests beside this one do not change much."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_checking_params_yaml_loads_nothing_heavy(root: Path) -> None:
    """Every stage starts the command line; torch alone would add two seconds to each."""
    code = (
        "import sys; from pipeline.config import load_params; load_params()\n"
        f"print([name for name in {(*HEAVY, 'numpy')!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_groups_every_command(run: Callable[..., Done]) -> None:
    text = run("--help").out
    assert [panel for panel in ("Stages", "Experiments", "Checks", "Serve") if panel in text] == [
        "Stages",
        "Experiments",
        "Checks",
        "Serve",
    ]
    for command in STAGES + OTHERS:
        assert f" {command} " in text, command


@pytest.mark.parametrize("command", STAGES + OTHERS)
def test_each_command_shows_an_example(command: str, run: Callable[..., Done]) -> None:
    help_text = run(command, "--help").out
    assert f"python -m pipeline {command}" in help_text.split("Examples:")[1]
    assert not re.search(r"<\w+|\[\[", help_text), "no type beside a flag, an option or an argument"


def test_help_reads_as_a_person_would_write_it(run: Callable[..., Done]) -> None:
    def lines(command: str) -> list[str]:
        return [" ".join(line.strip(" │").split()) for line in run(command, "--help").out.splitlines()]

    assert "--json For programs: one JSON object, nothing else." in lines("compare")
    assert "--samples N [x>=100] Resamples behind each interval. [default: 2000]" in lines("compare")
    (usage,) = [line for line in lines("compare") if line.startswith("Usage:")]
    assert usage.endswith("pipeline compare [OPTIONS] [RUN]...")  # before it: as the tests were started
    assert flowing("First.\n\nA line\nand its end.\n\n  an example\n  of two") == (
        "First.\n\nA line and its end.\n\n  an example\n  of two"
    )


def test_compare_writes_its_answer_into_a_file(
    run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rank = np.array([1, 0, 3, 11, 0, 2])
    folders = [write_run(tmp_path / f"Läufe {seed}", ranks_of(rank, strategy=f"s{seed}")) for seed in range(2)]
    for option in ("--json", "--markdown", ""):
        options = [option] if option else []
        said = run("compare", *folders, *options, "--samples", "100").out
        done = run("compare", *folders, *options, "--samples", "100", "-o", f"out/table{option}")
        assert (done.code, done.out.strip()) == (0, f"written: out/table{option}")
        assert (tmp_path / f"out/table{option}").read_text(encoding="utf-8") == said
    assert "Läufe" in (tmp_path / "out/table--json").read_bytes().decode()
    assert run("compare", "--promote", "--output", "x").code == 2


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_refuses_a_bad_params_yaml_as_a_whole(stage: str, project: Path, run: Callable[..., Done]) -> None:
    """A mistake in the section of another stage is refused too."""
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("max_windows:", "max_window:").replace("beam: 20", "beam: 2"))
    done = run(stage)
    assert (done.code, done.out) == (1, "")
    lines = done.err.splitlines()
    assert lines[0].startswith("error: unknown key 'train.max_window': did you mean 'max_windows'?")
    assert "expected a whole number from 10 to 10,000: metrics count the first 10 items" in lines[1]
    assert "missing key 'train.max_windows'" in lines[2]
    assert lines[-2].strip().startswith("mend the value, then `dvc repro`")
    assert "python -m pipeline migrate" in lines[-1]


def test_debug_shows_the_traceback_wherever_it_stands(
    project: Path, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "params.yaml").unlink()
    assert run("split").err.splitlines()[0] == "error: params.yaml is not here"
    for arguments in (["--debug", "split"], ["split", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        with pytest.raises(UserError, match=r"params\.yaml is not here"):
            cli.main()


def test_an_unknown_command_names_the_nearest_one(run: Callable[..., Done]) -> None:
    done = run("trian")
    assert done.code == 2
    assert "train" in done.err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_plainly(
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(**_: object) -> None:
        raise OSError(number, os.strerror(number), "data/splits/items_N.npy")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    message = capsys.readouterr().err
    assert message.startswith("error: the disk is full")
    assert "data/splits/items_N.npy" in message
    assert "free some space" in message


def test_any_other_fault_of_the_machine_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "data/sids/sids.parquet")

    assert told(broken, monkeypatch) == [
        "error: the machine refused (data/sids/sids.parquet): Input/output error",
        "  mend that, then run the same command again; --debug shows where it happened",
    ]


def told(broken: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a command prints which ends with an error, and code 1."""
    monkeypatch.setattr(cli, "app", broken)
    lines = io.StringIO()
    with pytest.raises(SystemExit) as end, contextlib.redirect_stderr(lines):
        cli.main()
    assert end.value.code == 1
    return lines.getvalue().splitlines()


def test_a_bug_is_called_one_and_its_traceback_is_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(**_: object) -> None:
        raise KeyError("widths")

    monkeypatch.chdir(tmp_path)
    what, why, fix = told(broken, monkeypatch)
    assert what.startswith("error: KeyError: 'widths' (")
    assert "a fault of sidpipe" in why
    assert ".sidpipe/traceback.txt" in fix
    assert "Traceback" in (tmp_path / ".sidpipe/traceback.txt").read_text()


# ---------------------------------------------------------------------------------------------------- presets


def test_without_a_name_presets_are_listed_by_kind_with_what_they_are(project: Path, run: Callable[..., Done]) -> None:
    kind, kinds = "", dict[str, list[list[str]]]()
    for line in run("preset").out.splitlines():
        if line.startswith("  "):
            kinds[kind].append(line.split())
        else:
            kind = line.split(" (")[0]
            kinds[kind] = []
    assert list(kinds) == ["whole", "data", "encoder", "quantizer", "model", "strategy", "retriever"]
    names = [line[0] for lines in kinds.values() for line in lines]
    assert sorted(names) == sorted(path.stem for path in (project / "presets").glob("*.yaml"))
    assert all(len(line) > 4 for lines in kinds.values() for line in lines)
    of_gr = ["gr", "gr-books", "gr-large", "gr-large-books", "gr-large-movielens-20m", "gr-movielens-20m"]
    assert [line[0] for line in kinds["model"]] == ["decoder", *of_gr, "hstu", "ranking", "sasrec", "tiger"]


def test_migrate_prints_a_line_per_key_and_says_when_there_is_nothing_to_do(
    project: Path, run: Callable[..., Done]
) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("  compile: true\n", "").replace("  log_model: true\n", ""))
    assert run("migrate").out.splitlines() == [
        "  added train.compile: true",
        "  added dense.compile: true",
        "  added track.log_model: true",
        "3 keys added. Next: dvc repro",
    ]
    assert (project / "params.yaml").read_text() == text
    assert run("migrate").out == "params.yaml has every key: nothing to do.\n"


@pytest.mark.usefixtures("project")
def test_a_data_preset_says_which_model_to_add_what_it_costs_and_what_it_reaches(run: Callable[..., Done]) -> None:
    out = run("preset", "amazon-beauty").out
    assert "dataset: demo -> amazon-beauty" in out
    assert "Next: add one of these presets, then dvc repro\n  beauty-fast, 85 s of training on one H200: " in out
    assert "recall@10 0.0842 (3 seeds" in out
    assert "none was measured on this dataset" in run("preset", "movielens-1m").out


@pytest.mark.usefixtures("project")
def test_an_unknown_preset_names_the_nearest_one(run: Callable[..., Done]) -> None:
    done = run("preset", "amazon-beuty")
    assert done.code == 1
    assert done.err.startswith("error: preset 'amazon-beuty' is not known, did you mean 'amazon-beauty'?")


# ---------------------------------------------------------------------------------------------------- doctor


def test_doctor_speaks_json_and_names_every_check(
    root: Path, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    checks = {check["name"]: check for check in json.loads(run("doctor", "--json").out)}
    assert {"python", "torch", "faiss", "dvc", "git", "params", "raw log", "mlflow", "disk"} <= set(checks)
    assert checks["params"]["state"] == checks["torch"]["state"] == checks["faiss"]["state"] == "ok"


@pytest.mark.parametrize(
    ("path", "state", "words"),
    [
        ("data/demo", "ok", "data/demo"),
        ("nowhere", "fail", "python -m pipeline fetch"),
        ("logs/*.csv", "fail", "ingest.files"),
        ("../elsewhere", "warn", "absolute path"),
        ("data/raw/mine", "warn", "dvc add data/raw/mine"),
    ],
)
def test_doctor_says_whether_dvc_will_find_the_raw_log(path: str, state: str, words: str, project: Path) -> None:
    for folder in ("data/demo", "data/raw/mine", "../elsewhere"):
        (project / folder).mkdir(parents=True, exist_ok=True)
    (project / "data/demo/scenario.yaml").write_text("users: 10\n")
    for command in (["init", "-q"], ["add", "data/demo"]):
        subprocess.run(["git", *command], check=True)
    check = check_raw_log(project, read_params({"ingest": {"path": path}}))
    assert check.state == state
    assert words in check.found + check.fix


def test_doctor_names_a_missing_git_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for who, what in itertools.product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")):
        monkeypatch.delenv(f"GIT_{who}_{what}", raising=False)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    check = check_identity(tmp_path)
    assert (check.state, check.found) == ("fail", "git has no user.name and no user.email")
    assert "git config --global user.name" in check.fix
    assert "git config --global user.email" in check.fix
    subprocess.run(["git", "config", "user.name", "Ann"], cwd=tmp_path, check=True)
    assert check_identity(tmp_path).found == "git has no user.email"
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "ann@example.org")
    assert check_identity(tmp_path).state == "fail"
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "ann@example.org")
    assert check_identity(tmp_path).state == "ok"


def test_doctor_fails_outside_a_project_and_says_what_to_do(
    tmp_path: Path, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("doctor")
    assert done.code == 1
    states = {line.split()[1]: line.split()[0] for line in done.out.splitlines() if not line.startswith(" ")}
    assert states["dvc"] == states["git"] == states["params"] == "fail"
    assert "git init" in done.out
