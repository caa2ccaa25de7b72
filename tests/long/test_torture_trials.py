"""A sample of `make torture`: six minutes of trials, another sample at each run."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_a_sample_of_all_trials_passes(root: Path, tmp_path: Path) -> None:
    """Another sample at each run; the file names a trial that fails, and `--only NAME --seed N` repeats it."""
    seed = random.Random(os.urandom(8)).randrange(10**6)
    file = tmp_path / "trials.jsonl"
    command = [sys.executable, "-m", "benchmarks.torture", "--hours", "0.1", "--seed", str(seed), "--file", str(file)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert len(file.read_text().splitlines()) > 20
