"""Stage check: one constant file, one line, and nothing heavy on the way."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from settings import read_params, some_params

from pipeline import cli
from pipeline.check.stage import run
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.ingest.sources import find_source

HEAVY = ("torch", "numpy", "pandas", "pyarrow", "mlflow", "duckdb", "sklearn", "scipy", "transformers")


def test_the_file_is_the_same_whatever_the_parameters_are(tmp_path: Path) -> None:
    for number, params in enumerate(
        (some_params(), read_params({"seed": 7, "strategy": "rastp", "train": {"beam": 30}}))
    ):
        run(params, output=tmp_path / f"{number}/checked.txt")
    assert (tmp_path / "0/checked.txt").read_bytes() == (tmp_path / "1/checked.txt").read_bytes() != b""


def test_it_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(read_params({"seed": 7, "strategy": "intrr"}), output=tmp_path / "checked.txt")
    assert capsys.readouterr().out == "check: params.yaml is valid; strategy intrr, dataset demo, seed 7\n"


def test_the_command_loads_nothing_heavy(root: Path, tmp_path: Path) -> None:
    """`check` runs at every change of a value, so `check` has to answer at once."""
    (tmp_path / "params.yaml").write_text((root / "params.yaml").read_text())
    (tmp_path / "data/demo").mkdir(parents=True)
    code = (
        "import sys; from pipeline.cli import app\n"
        "try: app(['check'])\n"
        f"except SystemExit: print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[1:] == ["[]"], done.stderr


@pytest.mark.parametrize("key", ["ingest.path", "embed.path", "embed.images"])
def test_a_path_that_is_not_there_is_told(key: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    with pytest.raises(UserError, match=f"{key} nowhere/at/all is not here"):
        run(read_params({section: {name: "nowhere/at/all"}}), output=tmp_path / "checked.txt")
    assert not (tmp_path / "checked.txt").exists()


@pytest.mark.parametrize(("dataset", "wanted"), [("custom", "interactions"), ("movielens-1m", "ratings.dat")])
def test_a_folder_without_the_log_is_told(dataset: str, wanted: str, tmp_path: Path) -> None:
    logs, output = tmp_path / "logs", tmp_path / "checked.txt"
    logs.mkdir()
    (logs / "other.csv").write_text("user,item,timestamp\n")
    params = read_params({"dataset": dataset, "ingest": {"path": str(logs)}})
    with pytest.raises(UserError, match=re.escape(wanted)):
        run(params, find_log=find_source, output=output)
    assert not output.exists()
    for name in ("interactions.csv", "ratings.dat", "movies.dat"):
        (logs / name).touch()
    run(params, find_log=find_source, output=output)


@pytest.mark.parametrize(
    ("changes", "longest"),
    [
        ({}, 20 * 5),  # three codes, the digit, the separator
        ({"quantize": {"collisions": "none"}, "backbone": {"separators": False}}, 20 * 3),
        ({"backbone": {"name": "sasrec"}}, 20),
        ({"backbone": {"name": "gr", "actions": True}, "ingest": {"actions": {"like": 1}}}, 20 * 2),
    ],
)
def test_a_step_too_small_for_the_longest_history_is_told(
    changes: dict[str, Any], longest: int, tmp_path: Path
) -> None:
    def params(budget: int) -> Params:
        return read_params({**changes, "split": {"max_history": 20}, "train": {"batch_tokens": budget}})

    run(params(longest), output=tmp_path / "checked.txt")
    (tmp_path / "checked.txt").unlink()
    with pytest.raises(UserError, match=f"train.batch_tokens is {longest - 1}, but one history may take {longest} pos"):
        run(params(longest - 1), output=tmp_path / "checked.txt")
    assert not (tmp_path / "checked.txt").exists()


def test_a_padded_row_too_short_for_the_longest_history_is_told(tmp_path: Path) -> None:
    def params(pad_to: int) -> Params:
        return read_params({"split": {"max_history": 20}, "train": {"batching": "padded", "pad_to": pad_to}})

    for fits in (0, 100):
        run(params(fits), output=tmp_path / "checked.txt")
    with pytest.raises(UserError, match="pad_to is 99, but one history may take 100 positions"):
        run(params(99), output=tmp_path / "checked.txt")


def test_a_link_into_a_cache_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "cached").write_text("of DVC's cache")
    (tmp_path / "checked.txt").symlink_to(tmp_path / "cached")
    run(some_params(), output=tmp_path / "checked.txt")
    assert (tmp_path / "cached").read_text() == "of DVC's cache"
    assert not (tmp_path / "checked.txt").is_symlink()


@pytest.mark.parametrize("removed", ["intrr", "train.device"])
def test_a_key_that_dvc_would_miss_is_told(
    removed: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DVC knows no defaults: it would stop at the stage that reads the key, when its outputs are gone."""
    raw = yaml.safe_load((root / "params.yaml").read_text())
    section, *key = removed.split(".")
    del (raw[section] if key else raw)[key[0] if key else section]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pipeline", "check"])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert f"missing key '{removed}'" in capsys.readouterr().err
