"""Commands that look at the machine and the project and change nothing."""

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Checks"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
) -> None:
    """Check whether this machine and project are ready to run.

    Looks at Python, torch, faiss, DVC, git, params.yaml, the raw log, MLflow's store and the disk. The exit code is 1
    if a check fails.

    [dim]Examples:[/dim]

      python -m pipeline doctor

      python -m pipeline doctor --json
    """
    from pipeline.doctor import examine, show

    checks = examine(Path())
    show(checks, as_json)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)
