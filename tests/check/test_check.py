"""Stage check: one constant file, one line, and nothing heavy on the way."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.check.stage import run
from pipeline.config import Params, build_params

HEAVY = ("torch", "numpy", "pandas", "pyarrow", "mlflow", "duckdb", "sklearn", "scipy", "transformers")


def test_the_file_is_the_same_whatever_the_parameters_are(tmp_path: Path) -> None:
    for number, params in enumerate((Params(), build_params({"seed": 7, "strategy": "rastp", "train": {"beam": 30}}))):
        run(params, output=tmp_path / f"{number}/checked.txt")
    assert (tmp_path / "0/checked.txt").read_bytes() == (tmp_path / "1/checked.txt").read_bytes() != b""


def test_it_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(build_params({"seed": 7, "strategy": "intrr"}), output=tmp_path / "checked.txt")
    assert capsys.readouterr().out == "check: params.yaml is valid; strategy intrr, dataset demo, seed 7\n"


def test_the_command_loads_nothing_heavy(root: Path, tmp_path: Path) -> None:
    """It runs at every change of a value, so it has to answer at once."""
    (tmp_path / "params.yaml").write_text((root / "params.yaml").read_text())
    code = (
        "import sys; from pipeline.cli import app\n"
        "try: app(['check'])\n"
        f"except SystemExit: print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[1:] == ["[]"], done.stderr
