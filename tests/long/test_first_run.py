"""The tutorial runs from top to bottom, as its first lines say, and shows what its prose promises."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def cpu_seconds() -> float:
    """What the processes that ended took, however busy the machine is."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_tutorial_runs_in_two_minutes_and_shows_recommendations(root: Path, tmp_path: Path) -> None:
    start = cpu_seconds()
    done = subprocess.run(
        [sys.executable, "examples/first_run.py"],
        cwd=root,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    for words in ("Semantic IDs begin alike", "co-occurrence", "The last clicks of user u00017", "show next"):
        assert words in done.stdout, words
    shown = done.stdout.split("show next:\n")[1].split("\n\n")[0].splitlines()
    assert len(shown) == 5
    assert all(float(line.split()[0]) < 0 and len(line.split()) > 2 for line in shown), "a log-probability and a title"
    assert cpu_seconds() - start < 120
    assert str(tmp_path) in done.stdout, "it writes into a temporary folder only"
