"""The command line: one command per stage and the commands around them, one file for each panel of `--help`.

The commands are thin. Each command imports its libraries when it runs, so that `--help` loads neither torch, pandas nor
mlflow. `main` turns errors meant for the user into a few plain lines and exit code 1.
"""

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.cli import checks, deploy, experiments, serve, stages
from pipeline.cli.ends import tell_costs, tell_stopped
from pipeline.cli.folders import enter_project
from pipeline.cli.help import Command, CommandGroup
from pipeline.errors import LostProcessError, UserError
from pipeline.faults import check_address_space, explain_fault, report_bug
from pipeline.printing import be_quiet, say
from pipeline.stopping import Stopped, command_name, requested

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMON = ("--debug", "--quiet", "-q", "--verbose", "-v")
for panel in (stages, experiments, checks, serve, deploy):
    for command in panel.commands.registered_commands:
        command.cls = Command
    app.add_typer(panel.commands)


def main() -> None:
    """Run the command line. A UserError or a fault of the machine ends it with code 1, a signal with 130 or 143.

    A traceback is printed only for --debug.
    """
    arguments = _common_first(sys.argv[1:])
    debug = "--debug" in arguments
    try:
        app(args=arguments)
    except Stopped as stopped:
        sys.exit(tell_stopped(stopped))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Nothing can be printed any more, not even at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if debug:
            raise
        # A library may have answered the signal with an error of its own.
        sys.exit(tell_stopped(None) if requested() and not isinstance(error, LostProcessError) else _explain(error))


def _explain(error: Exception) -> int:
    """Print what, why and what to do to stderr, and return the exit code."""
    if not isinstance(error, UserError):
        error = explain_fault(error, command_name()) or report_bug(error)
    what, *more = str(error).split("\n")
    say(f"error: {what}", *(f"  {line}" for line in more), error=True)
    return 1


def _common_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the options of every command in front, so that they may stand anywhere on the line.

    So --debug can be appended to a command that failed. What stands behind `--` is no option.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    common = [argument for argument in arguments[:end] if argument in COMMON]
    return [*common, *(argument for argument in arguments[:end] if argument not in COMMON), *arguments[end:]]


def _version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        say(f"sidpipe {__version__}", answer=True)
        raise typer.Exit


# Commands that load numeric libraries, and so need address space.
COMPUTING = {"ingest", "embed", "split", "count", "quantize", "train", "dense", "evaluate", "track"}
COMPUTING |= {"recommend", "explain", "sids", "compare", "gradients"}


@app.callback()
def _root(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print answers, warnings and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print time, memory and folder at the end.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Turn raw interaction logs into a trained, evaluated, comparable generative recommender over Semantic IDs.

    [bold]dvc repro[/bold] runs every stage that needs it; the commands below run one by hand. Settings: params.yaml.
    Commands work in the project's folder and in each folder below it. --quiet, --verbose and --debug may stand anywhere
    on the line.
    """
    be_quiet(quiet)
    enter_project()
    if context.invoked_subcommand in COMPUTING and not {"-h", "--help"}.intersection(sys.argv):
        check_address_space()
    if verbose:
        context.call_on_close(partial(tell_costs, str(context.invoked_subcommand), time.monotonic()))
