"""A new strategy is one folder, one section of params.yaml and one line of dvc.yaml."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from project_folder import Repository, stages_run

FOLDER = Path(__file__).parent / "thinning"
SECTION = "thinning:\n  share: 0.3\n"
LINE = "    - skipgr\n"  # the last of the parameters of train


@pytest.fixture
def extended(repository: Repository) -> Iterator[Repository]:
    """The project with the strategy `thinning`."""
    shutil.copytree(FOLDER, repository.path / "pipeline/strategies/thinning", ignore=shutil.ignore_patterns("__py*"))
    with (repository.path / "params.yaml").open("a") as file:
        file.write(SECTION)
    yield repository
    shutil.rmtree(repository.path / "pipeline/strategies/thinning")


def add_line(repository: Repository) -> None:
    graph = repository.path / "dvc.yaml"
    assert graph.read_text().count(LINE) == 1
    graph.write_text(graph.read_text().replace(LINE, LINE + "    - thinning\n"))
    repository.run("git", "add", "-A")


@pytest.mark.slow
def test_it_runs_under_dvc_and_composes(extended: Repository) -> None:
    before = json.loads((extended.path / "reports/timings.json").read_text())
    add_line(extended)
    for strategy in ("thinning", "thinning+rastp"):
        output = extended.run(
            "dvc", "exp", "run", "-S", f"strategy={strategy}", "-S", "rastp.after_layer=1", "-S", "thinning.share=0.4"
        )
        assert stages_run(output)[-3:] == ["train", "evaluate", "track"]
        timings = json.loads((extended.path / "reports/timings.json").read_text())
        assert 0.5 < timings["windows_trained"] / before["windows_trained"] < 0.7
        assert (timings["keep_rate"] < 1) == (strategy == "thinning+rastp")
        config = json.loads((extended.path / "models/generator/config.json").read_text())
        assert config["thinning"] == {"share": 0.4}


def test_what_is_wrong_with_it_is_told(extended: Repository) -> None:
    for value, said in (("1.5", "thinning.share is a share"), ("x", "thinning.share is 'x', expected float")):
        params = extended.path / "params.yaml"
        params.write_text(params.read_text().replace("share: 0.3", f"share: {value}"))
        assert said in extended.run("python", "-m", "pipeline", "split", code=1)
        params.write_text(params.read_text().replace(f"share: {value}", "share: 0.3"))
    params.write_text(params.read_text().replace("strategy: full", "strategy: skipgr+thinning"))
    assert "no rule says what the combination would do" in extended.run("python", "-m", "pipeline", "split", code=1)
