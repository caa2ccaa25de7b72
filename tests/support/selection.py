"""Which tests run, and which did not and why: a pytest plugin that tests/conftest.py loads.

- `long` tests run when an expression of -m names them, or when the command line names their file or the folder long/.
- `gpu` tests are skipped where their GPUs are missing. `pytest -m gpu` opens their files only, so that a machine with a
  GPU needs neither DVC nor MLflow nor DuckDB.
- The last line of every run counts the skipped tests by reason: `skips: 21 no GPU, 2 no shared data`. A reason says
  what is missing ("no GPU"); what follows a colon or a semicolon is detail and is not counted apart.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

DETAIL = re.compile(r"\s*[:;].*", re.DOTALL)
NOT_IMPORTED = re.compile(r"could not import '([^']+)'")
MARK = "mark.gpu"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Under `-m gpu`, open neither a file nor a folder, with its conftest.py, that marks no test so."""
    if config.option.markexpr != "gpu":
        return None
    if collection_path.is_dir():
        files = list(collection_path.rglob("test_*.py"))
    else:
        files = [collection_path] if collection_path.suffix == ".py" else []
    return None if any(MARK in path.read_text(encoding="utf-8") for path in files) else True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out long tests that nobody asked for."""
    if re.search(r"\blong\b", config.option.markexpr):
        return
    named = {(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args}
    named |= {file for folder in named if folder.name == "long" for file in folder.glob("test_*.py")}
    left_out = [item for item in items if item.get_closest_marker("long") and item.path not in named]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a `gpu` test where its GPUs are missing."""
    marks = list(item.iter_markers("gpu"))  # the nearest one first
    if not marks or (marks[0].kwargs.get("interpreter") and interpreted()):
        return
    import torch  # here, because most tests need none

    wanted = max(mark.args[0] if mark.args else 1 for mark in marks)
    if torch.cuda.device_count() < wanted:
        pytest.skip(f"no {wanted} GPUs" if torch.cuda.is_available() else "no GPU")


def interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the skips as the very last line; under xdist every report arrives at the process with the terminal."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput") and reporter.stats:
        reporter.write_line(skip_line(reason_of(report) for report in reporter.stats.get("skipped", ())))


def reason_of(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Why a test, or a whole file, was skipped."""
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def skip_line(reasons: Iterable[str]) -> str:
    """Counts by reason, the most frequent first."""
    counts = Counter(map(normalise, reasons))
    shown = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return "skips: " + (", ".join(f"{count} {reason}" for reason, count in shown) or "none")


def normalise(reason: str) -> str:
    """A reason without pytest's prefix and without detail; a missing module is "no MODULE"."""
    reason = reason.removeprefix("Skipped: ").strip()
    if missing := NOT_IMPORTED.match(reason):
        return f"no {missing[1].split('.')[0]}"
    return DETAIL.sub("", reason) or "no reason given"
