"""Fuzzing of ingest: rows read are rows counted by other means, and no error is a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_no_row_of_500_damaged_files_is_lost_without_a_word(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/fuzz_ingest.py", "--seed", "3", "--out", str(tmp_path / "fuzz.json")]
    for files in ("200", "500"):  # the second call goes on where the first one ended
        done = subprocess.run([*command, "--files", files], cwd=root, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads((tmp_path / "fuzz.json").read_text(encoding="utf-8"))
    assert (state["files"], state["failures"]) == (500, [])
    read = sum(counts.get("read", 0) for counts in state["counts"].values())
    assert read > 300
