"""What the README tells a reader to type, in a fresh clone: every line of its ```sh blocks, with the real DVC."""

import re
from pathlib import Path

import pytest
from shell_blocks import Clone, Command, commands_of

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]
COMMANDS = list(commands_of((ROOT / "README.md").read_text(encoding="utf-8")))
# Lines that are not run -> what they need
SKIPPED = {
    r"make test$": "run elsewhere: the suite itself, beside this test",
    r"pipeline fetch": "no network: it downloads a published dataset",
    r"git clone URL": "run elsewhere: test_sharing.py is the colleague",
    r"dvc exp pull": "run elsewhere: test_sharing.py is the colleague",
}
# Lines that need a file of the reader's first -> how to make it from the demo's
PREPARED = {
    r"git push": "git init -q --bare -b main ../origin.git && git remote add origin ../origin.git",
    r"ingest\.path=logs": "mkdir -p logs && cp data/interactions/raw/{interactions,items}.* logs/",
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    clone = Clone.of(ROOT, tmp_path_factory.mktemp("readme") / "sidpipe")
    clone.shrink()
    return clone


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_the_command_does_its_work(clone: Clone, command: Command) -> None:
    """A block begins with the settings as they come, and its lines follow one another."""
    if command == next(first for first in COMMANDS if first.block == command.block):
        assert clone.run("git checkout -q -- params.yaml").returncode == 0
    for pattern, reason in SKIPPED.items():
        if re.search(pattern, command.line):
            pytest.skip(reason)
    for pattern, preparation in PREPARED.items():
        if re.search(pattern, command.line):
            assert clone.run(preparation).returncode == 0
    done = clone.run(command.line)
    assert done.returncode == 0, f"{command.line}\n{done.stdout}\n{done.stderr}"


def test_every_exception_is_about_a_line_of_the_page() -> None:
    lines = [command.line for command in COMMANDS]
    assert lines
    unused = [pattern for pattern in {**SKIPPED, **PREPARED} if not any(re.search(pattern, line) for line in lines)]
    assert not unused
