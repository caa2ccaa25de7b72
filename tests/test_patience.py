"""A wait for a process fails at once when that process has ended, and says what the process wrote."""

import subprocess
import sys
from pathlib import Path

import pytest
from patience import wait_until


def test_the_end_of_a_process_ends_the_wait_for_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit('no luck')"], stderr=file)
    other = subprocess.Popen(["sleep", "600"])
    try:
        with pytest.raises(AssertionError, match=rf"nothing came: process {process.pid} has ended with 1\nno luck"):
            wait_until(lambda: False, "nothing came", alive=[other, process], output=log.read_text)
    finally:
        other.kill()
        other.wait()


def test_what_a_process_wrote_into_its_pipes_is_said() -> None:
    process = subprocess.Popen(["/bin/sh", "-c", "echo no luck; exit 3"], stdout=subprocess.PIPE, text=True)
    with pytest.raises(AssertionError, match=r"has ended with 3\nno luck"):
        wait_until(lambda: False, "nothing came", alive=process)


def test_a_process_that_has_ended_fails_also_where_what_was_waited_for_is_there() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(AssertionError, match="has ended with 0"):
        wait_until(lambda: True, "it came", alive=process)


def test_the_limit_ends_a_wait_and_shows_the_output() -> None:
    with pytest.raises(AssertionError, match="nothing came\nas it stands"):
        wait_until(lambda: False, "nothing came", 0, output=lambda: "as it stands")
    with pytest.raises(AssertionError, match=r"^nothing came"):
        wait_until(lambda: False, "nothing came", 0)
    wait_until(lambda: True, "it came", 0)
