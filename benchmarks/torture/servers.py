"""Trials of `fetch` against a server that answers what no server should."""

import importlib
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.torture.process import LIMITS, Ended, begin, children
from benchmarks.torture.project import ROOT, copy
from benchmarks.torture.trial import FAIL, REFUSED, Trial, World

LARGEST = 100_000_000  # bytes that fetch may take
REFUSALS = ("could not download", " leads to ", " is larger than ")  # words of fetch about a server


def hostile_servers() -> Iterator[Trial]:
    """Give a trial per answer of the hostile server of tests/support."""
    if not importlib.util.find_spec("hostile_server"):
        return
    server = importlib.import_module("hostile_server")
    for path in [*server.ANSWERS, *server.BEHAVIOURS]:

        def run(world: World, rng: random.Random, path: str = path) -> tuple[str, str]:  # noqa: ARG001
            folder = copy(world.reference, world.scratch / "fetch")
            shutil.rmtree(folder / "data/raw", ignore_errors=True)
            # A body without end is refused at the limit; the default of 100 GB would take an hour.
            params = folder / "params.yaml"
            params.write_text(re.sub(r"max_file_bytes: .*", f"max_file_bytes: {LARGEST}", params.read_text()))
            with server.hostile_server() as address:
                ended = _fresh(["fetch", f"{address}{path}"], folder)
            if fault := ended.fault():
                return FAIL, fault
            said = next((line for line in ended.text.splitlines() if any(word in line for word in REFUSALS)), "")
            return (REFUSED, said[:120]) if ended.code == 1 and said else (FAIL, ended.text[-200:])

        yield Trial("fetch from a hostile server", f"fetch-{path}", run)


def _fresh(arguments: list[str], folder: Path) -> Ended:
    """Run a command in a new process, because the server's thread would not live on in a forked one."""
    began = time.monotonic()
    log = folder / "torture.log"
    log.touch()
    process = begin([sys.executable, "-m", "pipeline", *arguments], folder, log, ROOT)
    try:
        code = process.wait(timeout=LIMITS.hang)
    except subprocess.TimeoutExpired:
        for pid in [process.pid, *children(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        return Ended(process.wait(), log.read_text(errors="replace"), time.monotonic() - began, hung=True)
    return Ended(code, log.read_text(errors="replace"), time.monotonic() - began)
