"""The commands of a page: what stands in its ```sh blocks, and an environment to run them in as a reader would."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from patience import wait_until

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s+#\s.*$")
QUEUE_LIMIT = 900  # seconds that queued experiments may take


@dataclass(frozen=True)
class Command:
    """One line of a block. block: the number of the block in its page, from 1."""

    block: int
    line: str

    def __str__(self) -> str:
        return f"{self.block}: {self.line}"


def commands_of(page: str) -> Iterator[Command]:
    """Every command of every ```sh block, in order, without its comment. A line that ends in a backslash goes on."""
    for number, block in enumerate(BLOCK.findall(page), start=1):
        for line in block.replace("\\\n", " ").splitlines():
            if command := COMMENT.sub("", line).strip().removeprefix("$ "):
                yield Command(number, command)


@dataclass(frozen=True)
class Clone:
    """A fresh clone of the project in which commands run."""

    path: Path

    @classmethod
    def of(cls, root: Path, path: Path) -> "Clone":
        """Every file of the working tree that git does not ignore, as the first commit of a new repository.

        Its .venv links to the environment that runs the tests: Python looks for pyvenv.cfg beside the folder `bin` that
        it was started from. `make setup` finds nothing to do.
        """
        clone = cls(path)
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes((root / name).read_bytes())
                (path / name).chmod((root / name).stat().st_mode)
        for command in ("git init -q -b main", "git add -A", "git commit -q -m Start"):
            assert clone.run(command).returncode == 0
        environment = path / ".venv"
        environment.mkdir()
        for entry in Path(sys.prefix).iterdir():
            if not entry.name.startswith("."):
                (environment / entry.name).symlink_to(entry)
        for stamp in (".ready", ".docs-ready"):
            (environment / stamp).touch()
        return clone

    def shrink(self) -> None:
        """Commit settings that train in seconds, also as the defaults that `preset demo` writes."""
        for name in ("params.yaml", "presets/demo.yaml"):
            file = self.path / name
            text = file.read_text(encoding="utf-8")
            for long, short in (
                ("max_windows: 60000", "max_windows: 2000"),
                ("max_epochs: 12", "max_epochs: 2"),
                ("validate_every: 150", "validate_every: 20"),
            ):
                assert f"  {long}\n" in text, long
                text = text.replace(f"  {long}\n", f"  {short}\n")
            file.write_text(text, encoding="utf-8")
        assert self.run("git commit -qam 'Train less'").returncode == 0

    def run(self, command: str, seconds: float = 900) -> subprocess.CompletedProcess[str]:
        """The command in bash, with the clone's environment activated; a queue that it started is waited for."""
        done = subprocess.run(
            ["bash", "-c", f"set -e -o pipefail; {command}"],
            cwd=self.path,
            env=self.environment(),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
        )
        if "dvc queue start" in command and done.returncode == 0:
            self.wait_for_queue()
        return done

    def environment(self) -> Mapping[str, str]:
        """As in a terminal of a reader who has set nothing."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DVC_", "MLFLOW_", "PYTEST_", "PYTHON", "COV_", "MAKE", "MFLAGS", "VIRTUAL_ENV"))
        }
        return kept | {
            "PATH": f"{self.path / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **{
                f"GIT_{who}_{what}": value
                for who in ("AUTHOR", "COMMITTER")
                for what, value in (("NAME", "Reader"), ("EMAIL", "reader@example.org"))
            },
        }

    def wait_for_queue(self) -> None:
        """Until no experiment of the queue waits or runs; each of them must have succeeded."""
        status = ""

        def is_done() -> bool:
            nonlocal status
            status = self.run("dvc queue status").stdout
            return not re.search(r"\b(Queued|Running)\b", status)

        wait_until(is_done, "the queue is still at work", QUEUE_LIMIT, look=3, output=lambda: status)
        assert "Failed" not in status, status
