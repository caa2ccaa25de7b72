"""Each stage in a project whose folders may not be written: a plain error, no traceback, and files as before."""

import ctypes
import os
import stat
import sys
from pathlib import Path

import pytest

from benchmarks.torture.process import forked, preload
from benchmarks.torture.project import BY_HAND, digest, lay_out

pytestmark = pytest.mark.long
FOLDERS = ("data", "models", "reports", ".sidpipe")
VERSION = 0x20080522  # of the structures of capget and capset
OVERRIDE = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root ignores modes


def as_any_user() -> None:
    """Let modes hold for this process, also where it is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the low 32 bits, then the high ones
    assert libc.capget(header, sets) == 0
    for index in range(3):
        sets[index] &= ~OVERRIDE & 0xFFFFFFFF
    assert libc.capset(header, sets) == 0


def as_any_user_who_is_heard() -> None:
    """As above, and let the child print to the pipe of `forked` instead of into pytest."""
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    as_any_user()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project whose stages were run by hand."""
    folder = tmp_path_factory.mktemp("read-only") / "project"
    folder.mkdir()
    preload(tracking=False)
    lay_out(folder, 100, ["train.max_windows=300", "train.validate_every=5"])
    for stage in BY_HAND:
        ended = forked([stage], folder)
        assert ended.code == 0, ended.text
    return folder


def let_write(folder: Path, allowed: bool) -> None:
    for name in FOLDERS:
        for path in [folder / name, *(folder / name).rglob("*")]:
            mode = path.stat().st_mode
            path.chmod(mode | stat.S_IWUSR if allowed else mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


@pytest.mark.parametrize("stage", BY_HAND)
@pytest.mark.parametrize("gone", [False, True], ids=["files there", "files removed"])
def test_a_stage_that_may_not_write_says_so(finished: Path, stage: str, gone: bool) -> None:
    """Over its files of an earlier run, and where DVC has removed them."""
    before = digest(finished)
    removed = {path: path.read_bytes() for path in (finished / "reports").glob("*.csv")} if gone else {}
    for path in removed:
        path.unlink()
    let_write(finished, allowed=False)
    try:
        ended = forked([stage], finished, before=as_any_user_who_is_heard)
        assert not ended.fault(), ended.text
        assert ended.code == 1, ended.text
        errors = [line for line in ended.text.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, ended.text
        assert "ermi" in ended.text or "not allowed" in ended.text, ended.text
    finally:
        let_write(finished, allowed=True)
        for path, content in removed.items():
            path.write_bytes(content)
    assert digest(finished) == before
    assert not list(finished.rglob("*.partial"))


def test_modes_hold_for_the_process_that_is_tried(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o555)
    if (pid := os.fork()) == 0:
        code = 1
        try:
            as_any_user()
            (tmp_path / "shut/file").write_text("")
        except PermissionError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
