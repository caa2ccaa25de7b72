"""What the machine refuses is told in the words of a user, whichever library met it."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.faults import explain_fault

HUGE = 2**46  # bytes; no machine has them


def by_numpy() -> None:
    np.ones(HUGE, np.int8)


def by_torch() -> None:
    torch.ones(HUGE, dtype=torch.int8)


def by_arrow() -> None:
    import pyarrow as pa

    pa.allocate_buffer(HUGE << 14)


def by_duckdb() -> None:
    import duckdb

    duckdb.connect(config={"memory_limit": "1MB", "temp_directory": ""}).sql(
        "select list(i) from range(10000000) t(i)"
    ).fetchall()


def by_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")


def by_a_library_that_is_loaded() -> None:
    raise ImportError("libtorch_cpu.so: failed to map segment from shared object")


def by_a_thread() -> None:
    raise RuntimeError("can't start new thread")


def wrapped() -> None:
    try:
        by_numpy()
    except MemoryError as error:
        raise ValueError("the table cannot be made") from error


@pytest.mark.parametrize(
    "allocate",
    [by_numpy, by_torch, by_arrow, by_duckdb, by_a_gpu, by_a_library_that_is_loaded, by_a_thread, wrapped],
)
def test_memory_that_runs_out_says_how_much_and_what_to_lower(allocate: Callable[[], None]) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011 - each library has its own
        allocate()
    fault = explain_fault(error.value, "train")
    assert fault is not None
    assert fault.what.startswith("out of memory")
    assert "train.batch_tokens" in fault.fix
    if allocate in (by_numpy, by_torch, by_arrow):
        assert any(amount in fault.what for amount in ("64.0 TiB", str(HUGE), str(HUGE << 14))), fault.what


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "data/sids/sids.parquet"),
        OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
        type("IOException", (Exception,), {"__module__": "duckdb"})("IO Error: ... No space left on device"),
        type("SafetensorError", (Exception,), {"__module__": "safetensors"})("Error: Io: No space left on device"),
    ],
)
def test_a_full_disk_is_known_by_number_or_by_the_words_of_a_library(error: Exception) -> None:
    fault = explain_fault(error, "quantize")
    assert fault is not None
    assert fault.what.startswith("the disk is full")


def test_a_file_that_may_not_be_written_is_named() -> None:
    fault = explain_fault(PermissionError(errno.EACCES, "Permission denied", "models/generator"), "train")
    assert fault is not None
    assert fault.what == "not allowed (models/generator): Permission denied"


def test_an_error_of_another_kind_is_no_fault_of_the_machine() -> None:
    assert explain_fault(KeyError("out of memory"), "train") is None
    assert explain_fault(ValueError("no space left on device"), "train") is None


@pytest.mark.slow
def test_a_small_machine_is_told_in_lines_and_without_a_traceback() -> None:
    """The limit is met while libraries load or in the command itself; both are told."""
    code = "import resource, sys; sys.argv = ['pipeline', 'recommend', '--user', 'u1']; import pipeline.__main__ as m\n"
    code += "resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20)); m.start()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "out of memory" in done.stderr


def test_too_little_address_space_is_refused_at_once(tmp_path: Path) -> None:
    """OpenBLAS asks for memory again and again while it is loaded, so that nothing could stop the command."""
    for mebibytes, said in ((200, "out of memory: this process may have 200 MiB"), (4096, "params.yaml is not here")):
        limit = f"ulimit -v {mebibytes << 10}; exec '{sys.executable}' -m pipeline split"
        done = subprocess.run(["sh", "-c", limit], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: {said}")
        assert "ulimit -v unlimited" in done.stderr or mebibytes == 4096
    fine = ["sh", "-c", f"ulimit -v 204800; exec '{sys.executable}' -m pipeline split --help"]
    assert subprocess.run(fine, cwd=tmp_path, capture_output=True, timeout=120).returncode == 0
