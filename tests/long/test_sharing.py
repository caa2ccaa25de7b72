"""A colleague's clone has the results of the README's section Share, and trains nothing."""

import re
from pathlib import Path

import pytest
from project_folder import stages_run
from shell_blocks import Clone, commands_of

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]


def block_with(words: str) -> list[str]:
    """The lines of the README's block that has these words."""
    commands = list(commands_of((ROOT / "README.md").read_text(encoding="utf-8")))
    number = next(command.block for command in commands if words in command.line)
    return [command.line for command in commands if command.block == number]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A project whose baseline and one experiment were pushed, into the folders storage and origin.git beside it."""
    clone = Clone.of(ROOT, tmp_path_factory.mktemp("sharing") / "sidpipe")
    clone.shrink()
    for line in (
        "dvc repro",
        "git add dvc.lock reports && git commit -qm Baseline",
        "git init -q --bare -b main ../origin.git && git remote add origin ../origin.git",
        *block_with("dvc remote add"),
    ):
        done = clone.run(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return clone


def test_a_colleague_sees_the_results_and_trains_nothing(shared: Clone) -> None:
    setup, *lines = block_with("git clone URL")
    mate = Clone(shared.path.parent / "mate")
    assert "git clone URL" in setup
    assert shared.run("git clone -q ../origin.git ../mate && cp -Pr .venv ../mate/").returncode == 0
    printed = ""
    for line in lines:
        done = mate.run(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    assert stages_run(printed) == ["track"]
    assert "skipgr" in printed, "compare has the experiment"
    (name,) = re.findall(r"\[([\w-]+)\]", mate.run("dvc exp list").stdout)
    assert mate.run(f"dvc exp apply {name}").returncode == 0
    assert "strategy: skipgr" in (mate.path / "params.yaml").read_text(encoding="utf-8")
    assert stages_run(mate.run("dvc repro").stdout) == ["track"]


def test_the_last_commit_comes_back_and_nothing_runs(shared: Clone) -> None:
    """An experiment without --temp leaves its values in params.yaml; the README says how to go back."""
    before = shared.run("git status --short").stdout
    model = shared.path / "models/generator/model.safetensors"
    content = model.read_bytes()
    assert shared.run("dvc exp run -S seed=8").returncode == 0
    assert model.read_bytes() != content
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (back,) = re.findall(r"`(git checkout params\.yaml .*?)`", text, re.DOTALL)
    assert shared.run(back.replace("\n", " ")).returncode == 0
    assert model.read_bytes() == content
    assert shared.run("git status --short").stdout == before
    assert stages_run(shared.run("dvc repro").stdout) == ["track"]
