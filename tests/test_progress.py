"""The line of progress: never beyond 100%, and its time left has the validations that are to come."""

import pytest

from pipeline.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_the_last_step_may_go_beyond_the_goal(clock: list[float]) -> None:
    line = Progress("train", 3000, "windows")
    clock[0] = 10.0
    line.update(3076)
    assert line.line() == "train: 3,076 of 3,076 windows (100%), 308/s, 0:00 left"


def test_time_left_includes_validations_and_the_rate_does_not(clock: list[float]) -> None:
    line = Progress("train", 1000, "windows")
    to_come = [4]
    line.pauses(lambda: to_come[0], "validation")
    clock[0] = 10.0
    line.update(200, "loss 9.120")
    assert line.line() == "train: 200 of 1,000 windows (20%), 20/s, 0:40 left and 4 validations, loss 9.120"
    with line.pause():
        clock[0] = 40.0
    to_come[0] = 3
    assert line.line() == "train: 200 of 1,000 windows (20%), 20/s, 2:10 left, loss 9.120"


def test_a_resumed_run_counts_its_own_windows_for_the_rate(clock: list[float]) -> None:
    line = Progress("train", 1000, "windows", start=500)
    clock[0] = 10.0
    line.update(100)
    assert ", 10/s, 0:40 left" in line.line()


@pytest.mark.parametrize(("brief", "lines"), [(True, 0), (False, 1)])
def test_brief_work_leaves_no_line(brief: bool, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("validate", 5, "users", brief=brief) as line:
        line.update(5)
    assert len(capsys.readouterr().err.splitlines()) == lines
