"""What every test shares: where the project lies, and one thread per process, so that runs do not fight for cores."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

# Which tests run and which were skipped, then fixtures that tests of several folders use
pytest_plugins = ("selection", "networks", "tracked_project")
os.environ.setdefault("OMP_NUM_THREADS", "1")
with suppress(ImportError):  # a machine that only runs the tests of a GPU may lack it
    from hypothesis import HealthCheck, settings

    # An example that takes long says that the machine is busy, and nothing of the code.
    settings.register_profile("any speed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any speed")
os.environ["DVC_NO_ANALYTICS"] = os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


FIRST = ("test_torture_trials", "test_readme", "test_pipeline")  # files that take minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what takes longest first: it would keep a process busy after all others (with `--no-loadscope-reorder`)."""
    items.sort(key=lambda item: (item.path.stem not in FIRST, item.path.parent.name != "pipeline"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def torch_settings_given_back() -> Iterator[None]:
    """Restores torch's threads and determinism, which training of a generator or a quantizer sets for the process."""
    import torch  # imported here, because many tests do not need torch

    threads, fixed = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(fixed)
