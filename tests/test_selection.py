"""The plugin of tests/support/selection.py: which tests run, and the closing line that counts the skips by reason."""

import pytest
from selection import normalise, skip_line

pytest_plugins = ("pytester",)
NO_GPU = """
class cuda:
    device_count = staticmethod(lambda: 0)
    is_available = staticmethod(lambda: False)
"""
SETTINGS = "[pytest]\nmarkers =\n    long\n    gpu\n"
TESTS = """
import pytest

def test_plain():
    pass

@pytest.mark.long
def test_of_minutes():
    pass

@pytest.mark.gpu(99)
def test_of_a_gpu():
    pass

def test_of_a_module():
    pytest.importorskip("no_such_module.inner")

@pytest.mark.skipif(True, reason="no shared data: they lie elsewhere")
@pytest.mark.parametrize("case", [1, 2])
def test_of_data(case):
    pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # their imports take seconds
    pytester.makeini(SETTINGS)
    pytester.makepyfile(test_some=TESTS, test_other="import no_such_module\n", torch=NO_GPU)
    return pytester


@pytest.mark.parametrize("workers", [(), ("-p", "xdist.plugin", "-n", "2")], ids=["one process", "two workers"])
def test_the_last_line_counts_skips_by_reason(project: pytest.Pytester, workers: tuple[str, ...]) -> None:
    done = project.runpytest_subprocess("-p", "selection", *workers, ".", "--ignore=test_other.py")
    done.assert_outcomes(passed=1, skipped=4, deselected=0 if workers else 1)
    assert done.outlines[-1] == "skips: 2 no shared data, 1 no GPU, 1 no no_such_module"


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ([], 1),
        (["test_some.py"], 2),
        (["test_some.py::test_of_minutes"], 1),
        (["-m", "long"], 1),
        (["-m", "not slow"], 1),
    ],
)
def test_long_tests_run_when_they_or_their_file_are_named(
    project: pytest.Pytester, arguments: list[str], passed: int
) -> None:
    done = project.runpytest_subprocess("-p", "selection", "--ignore=test_other.py", *arguments)
    assert done.parseoutcomes()["passed"] == passed


def test_asking_for_gpu_tests_opens_no_other_file(project: pytest.Pytester) -> None:
    done = project.runpytest_subprocess("-p", "selection", "-m", "gpu")
    done.assert_outcomes(skipped=1, deselected=5)


def test_a_run_without_skips_says_so() -> None:
    assert skip_line([]) == "skips: none"


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        ("Skipped: no GPU", "no GPU"),
        ("no pyspark: pip install 'sidpipe[spark]'", "no pyspark"),
        ("could not import 'torchvision.io': No module named 'torchvision'", "no torchvision"),
        ("", "no reason given"),
    ],
)
def test_a_reason_says_what_is_missing(reason: str, short: str) -> None:
    assert normalise(reason) == short
