"""A sample of `make torture`: six minutes of trials, another sample at each commit."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.torture.__main__ import commit, failures, read

pytestmark = pytest.mark.long


def test_a_sample_of_all_trials_passes(root: Path, tmp_path: Path) -> None:
    """The commit decides the sample, so that a red run can be repeated: `--only NAME --seed N` repeats one trial."""
    short = commit()[:7]  # git prints more characters in a larger clone
    seed = int.from_bytes(hashlib.sha256(short.encode()).digest()[:4], "big") % 10**6
    file = tmp_path / "trials.jsonl"
    command = [sys.executable, "-m", "benchmarks.torture", "--hours", "0.1", "--seed", str(seed), "--file", str(file)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
    rows = read(file)
    failed = "\n".join(f"{row['trial']}: {row['detail']}" for row in failures(rows))
    assert not failed, f"seed {seed}: {failed}"
    assert done.returncode == 0, f"seed {seed}\n{done.stderr}\n{done.stdout[-2000:]}"
    assert len(rows) > 20
