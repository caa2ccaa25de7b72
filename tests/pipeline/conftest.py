"""One small project in a temporary git repository, in which `dvc repro` ran once; it serves every test of this folder.

Each test leaves the working tree as the commit has it, so that their order does not matter.
"""

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from project_folder import Repository

from pipeline.presets.apply import apply_preset

SMALL = [
    "embed.dimensions=16",
    "quantize.codes=8",
    "quantize.iterations=10",
    "backbone.encoder_layers=1",
    "backbone.decoder_layers=1",
    "backbone.d_model=16",
    "backbone.heads=2",
    "backbone.d_head=8",
    "backbone.d_ff=32",
    "train.max_windows=3000",
    "train.batch_tokens=1024",
    "train.validate_every=20",
    "train.checkpoint_every=20",
    "train.threads=1",
    "dense.enabled=false",  # tests of the stage switch it on
    "evaluate.bootstrap_samples=50",
]


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Repository:
    """The project's files as a git repository, its scenario and its model small."""
    repository = Repository(tmp_path_factory.mktemp("project"))
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (root / name).is_file():
            (repository.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, repository.path / name)
    scenario = repository.path / "data/demo/scenario.yaml"
    text = scenario.read_text().replace("users: 2000", "users: 120").replace("items: 1000", "items: 80")
    scenario.write_text(text)
    apply_preset("demo", SMALL, folder=repository.path / "presets", params=repository.path / "params.yaml")
    repository.run("git", "init", "-q", "-b", "main")
    repository.commit("Start")
    return repository


@pytest.fixture(scope="session")
def twin(origin: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Another clone of the same commit, with another cache."""
    folder = tmp_path_factory.mktemp("clones") / "twin"
    subprocess.run(["git", "clone", "-q", str(origin.path), str(folder)], check=True)
    return Repository(folder)


def _reproduce(repository: Repository) -> str:
    return repository.run("dvc", "repro")


@pytest.fixture(scope="session")
def first_run(origin: Repository, twin: Repository) -> str:
    """What `dvc repro` printed; its results are committed afterwards, as the README tells. The twin runs beside it."""
    with ThreadPoolExecutor() as pool:
        output, _ = pool.map(_reproduce, (origin, twin))
    origin.commit("Results")
    return output


@pytest.fixture(scope="session")
def seventh(origin: Repository, first_run: str) -> dict[str, str]:  # noqa: ARG001 - asked for what it does
    """The experiment `seventh`, with another seed: what DVC printed, how params.yaml changed, and the difference."""
    shown = {
        "output": origin.run("dvc", "exp", "run", "-S", "seed=7", "-n", "seventh"),
        "params": origin.run("git", "diff", "--unified=0", "params.yaml"),
        "metrics": origin.run("dvc", "metrics", "diff", "--all", "--md"),
    }
    origin.restore()
    return shown


@pytest.fixture
def repository(origin: Repository, first_run: str) -> Iterator[Repository]:  # noqa: ARG001 - asked for what it does
    """The project after its first run."""
    yield origin
    origin.restore()
