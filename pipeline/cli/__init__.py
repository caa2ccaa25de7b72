"""The command line: one command per stage and the commands around them, one file for each panel of `--help`.

The commands are thin. Each command imports its libraries when it runs, so that `--help` loads neither torch, pandas nor
mlflow. `main` turns errors meant for the user into a few plain lines and exit code 1.
"""

import errno
import sys
from typing import Annotated

import typer

from pipeline.cli import checks, experiments, serve, stages
from pipeline.errors import UserError
from pipeline.printing import say

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel in (stages, experiments, checks, serve):
    app.add_typer(panel.commands)


def main() -> None:
    """Run the command line; a UserError or a full disk ends with exit code 1, and with a traceback only for --debug."""
    debug = "--debug" in sys.argv  # anywhere on the line, so that it can be appended to a command that failed
    try:
        app(args=[argument for argument in sys.argv[1:] if argument != "--debug"])
    except UserError as error:
        if debug:
            raise
        sys.exit(_explain(error))
    except OSError as error:
        if debug or error.errno not in FULL_DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        sys.exit(
            _explain(
                UserError(
                    f"the disk is full or a file may not grow further{where}: {error.strerror}",
                    "the command stopped; files that were complete before are still there",
                    "free some space, then run the same command again",
                )
            )
        )


def _explain(error: UserError) -> int:
    """Print what, why and what to do to stderr, and return the exit code."""
    what, *more = str(error).split("\n")
    say(f"error: {what}", *(f"  {line}" for line in more), error=True)
    return 1


@app.callback()
def _root(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Turn raw interaction logs into a trained, evaluated, comparable generative recommender over Semantic IDs.

    [bold]dvc repro[/bold] runs every stage that needs it; the commands below run one by hand. Settings: params.yaml.
    """
