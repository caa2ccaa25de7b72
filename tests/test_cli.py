"""The command line: quick to answer, three plain lines on a mistake, recipes that keep params.yaml readable."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipeline import cli
from pipeline.config import build_params, load_params
from pipeline.doctor import check_raw_log
from pipeline.errors import UserError
from pipeline.presets import apply_preset, describe

STAGES = ("check", "ingest", "embed", "quantize", "split", "train", "evaluate", "track")
OTHERS = ("fetch", "preset", "doctor", "recommend", "explain", "sids", "compare", "gradients")
HEAVY = ("torch", "pandas", "mlflow", "transformers", "duckdb", "ibis", "sklearn", "matplotlib", "pyarrow")


@pytest.fixture
def project(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's params.yaml and presets, as the current one."""
    shutil.copy(root / "params.yaml", tmp_path)
    shutil.copytree(root / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line in this process: it is quicker than a new one, and ends the same way."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return Done(int(end.value.code or 0), out, err)

    return run


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
    assert f"python -m pipeline {command}" in run(command, "--help").out.split("Examples:")[1]


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
    assert "evaluate.beam must be 10 or more" in lines[1]
    assert lines[-1].strip().startswith("mend the value, then `dvc repro`")


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


def test_any_other_fault_of_the_machine_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(OSError, match="Input/output"):
        cli.main()


# ---------------------------------------------------------------------------------------------------- presets


def test_without_a_name_presets_are_listed_with_what_they_are(project: Path, run: Callable[..., Done]) -> None:
    lines = run("preset").out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in (project / "presets").glob("*.yaml"))
    assert all(len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize("name", sorted(path.stem for path in (Path(__file__).parents[1] / "presets").iterdir()))
def test_each_preset_is_valid_and_demo_brings_everything_back(name: str, project: Path) -> None:
    before = (project / "params.yaml").read_text()
    apply_preset(name, ["train.learning_rate=1e-5", "ingest.columns={user: member}", "embed.template=['{title}']"])
    params, preset = load_params(), yaml.safe_load((project / "presets" / f"{name}.yaml").read_text())
    assert (params.train.learning_rate, params.ingest.columns) == (1e-5, {"user": "member"})
    assert params.embed.template == ("{title}",)
    assert params.dataset == preset.get("dataset", "demo")
    apply_preset("demo", [])
    assert (project / "params.yaml").read_text() == before


def test_a_preset_says_where_it_comes_from_and_how_to_run_it(root: Path) -> None:
    for path in (root / "presets").glob("*.yaml"):
        comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any(line.startswith("# Source: ") for line in comments), path
        assert f"python -m pipeline preset {path.stem}" in "\n".join(comments), path


def test_a_preset_changes_only_the_lines_it_names(project: Path) -> None:
    before = (project / "params.yaml").read_text().splitlines()
    changes = apply_preset("amazon-beauty", ["ingest.path=/logs/beauty"])
    after = (project / "params.yaml").read_text().splitlines()
    assert [line.strip() for old, line in zip(before, after, strict=True) if old != line] == [
        "dataset: amazon-beauty",
        "path: /logs/beauty",
        "codes: 256",
    ]
    assert [str(change) for change in changes] == [
        "dataset: demo -> amazon-beauty",
        "ingest.path: data/demo -> /logs/beauty",
        "quantize.codes: 64 -> 256",
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.max_window=1", "unknown key 'train.max_window': did you mean 'max_windows'"),
        ("trian.max_windows=1", "unknown key 'trian.max_windows': did you mean 'train'"),
        ("train.select=recall_at_50", "did you mean 'recall_at_5'"),
        ("seed", "no '='"),
    ],
)
def test_a_setting_that_is_refused_leaves_params_yaml_alone(setting: str, message: str, project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(UserError, match=message):
        apply_preset("tiger", [setting])
    assert (project / "params.yaml").read_bytes() == before


def test_an_unknown_preset_names_the_nearest_one(project: Path, run: Callable[..., Done]) -> None:
    done = run("preset", "amazon-beuty")
    assert done.code == 1
    assert done.err.startswith("error: preset 'amazon-beuty' is not known, did you mean 'amazon-beauty'?")


def test_a_date_is_written_as_text_which_dvc_needs(project: Path) -> None:
    apply_preset("demo", ["split.protocol=temporal", "split.valid_from=2014-01-01", "split.test_from=2014-02-01"])
    assert yaml.safe_load((project / "params.yaml").read_text())["split"]["valid_from"] == "2014-01-01"


def test_every_published_recipe_has_a_preset(root: Path) -> None:
    recipes = {
        "amazon-beauty",
        "amazon-sports",
        "amazon-toys",
        "movielens-100k",
        "movielens-1m",
        "movielens-20m",
        "movielens-latest",
        "demo",
        "tiger",
        "flan-t5-xl",
        "qwen2.5-vl-7b",
    }
    assert recipes <= set(describe(root / "presets"))


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
    check = check_raw_log(project, build_params({"ingest": {"path": path}}))
    assert check.state == state
    assert words in check.found + check.fix


def test_doctor_fails_outside_a_project_and_says_what_to_do(
    tmp_path: Path, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("doctor")
    assert done.code == 1
    states = {line.split()[1]: line.split()[0] for line in done.out.splitlines() if not line.startswith(" ")}
    assert states["dvc"] == states["git"] == states["params"] == "fail"
    assert "git init" in done.out
