"""The command line: one command per stage, and what surrounds them.

Thin on purpose. Each command imports what it needs when it runs, so that `--help` loads neither torch, pandas nor
mlflow. `main` is where errors meant for the user become three plain lines and exit code 1.
"""

import errno
import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UserError

STAGES, EXPERIMENTS, CHECKS, SERVE = "Stages", "Experiments", "Checks", "Serve"
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]})


def main() -> None:
    """A UserError or a full disk ends with exit code 1 and no traceback, unless --debug is given."""
    debug = "--debug" in sys.argv  # anywhere on the line, so that it can be appended to what failed
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
        sys.exit(_explain(UserError(f"the disk is full or a file may not grow further{where}: {error.strerror}",
                                    "the command stopped; what was complete before is still there",
                                    "free some space, then run the same command again")))


def _explain(error: UserError) -> int:
    """What, why and what to do, on stderr. Returns the exit code."""
    what, *more = str(error).splitlines()
    print(f"error: {what}", *(f"  {line}" for line in more), sep="\n", file=sys.stderr, flush=True)
    return 1


@app.callback()
def _root(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """From raw interaction logs to a trained, evaluated, comparable generative recommender that speaks Semantic IDs.

    [bold]dvc repro[/bold] runs every stage that needs it; the commands below run one by hand. Settings: params.yaml.
    """


# ---------------------------------------------------------------------------------------------------- stages

def _run(stage: str) -> None:
    """Check the whole of params.yaml, then run one stage on it."""
    from pipeline.config import load_params

    params = load_params()
    importlib.import_module(f"pipeline.{stage}.stage").run(params)


@app.command(rich_help_panel=STAGES)
def ingest() -> None:
    """Clean the raw log: drop bad rows, deduplicate, keep the k-core, number users and items.

    Reads ingest.path, writes data/interactions. Every dropped row is in rejects.parquet with its reason.

    [dim]Examples:[/dim]

      python -m pipeline ingest

      dvc exp run -S dataset=custom -S ingest.path=logs
    """
    _run("ingest")


@app.command(rich_help_panel=STAGES)
def embed() -> None:
    """Give every item a vector: from its text, or one that you bring.

    Reads data/interactions, writes data/embeddings.

    [dim]Examples:[/dim]

      python -m pipeline embed

      dvc exp run -S embed.encoder=precomputed -S embed.path=vectors.npy
    """
    _run("embed")


@app.command(rich_help_panel=STAGES)
def quantize() -> None:
    """Turn the vectors into Semantic IDs, one per item, with a digit that keeps them apart.

    Reads data/embeddings, writes data/sids with a quality report (collisions, codes used, reconstruction error).

    [dim]Examples:[/dim]

      python -m pipeline quantize

      dvc exp run -S quantize.codes=256
    """
    _run("quantize")


@app.command(rich_help_panel=STAGES)
def split() -> None:
    """Decide what is for training, for choosing the model, and for the final number.

    Reads data/interactions, writes data/splits.

    [dim]Examples:[/dim]

      python -m pipeline split

      dvc exp run -S split.max_history=50
    """
    _run("split")


@app.command(rich_help_panel=STAGES)
def train() -> None:
    """Train the generator by the chosen strategy. A killed run resumes from its last checkpoint.

    Reads data/sids and data/splits, writes models/generator, reports/history.csv and reports/timings.json.

    [dim]Examples:[/dim]

      python -m pipeline train

      torchrun --nproc_per_node 2 -m pipeline train

      dvc exp run -S train.learning_rate=3e-4 -S train.max_windows=1000000
    """
    _run("train")


@app.command(rich_help_panel=STAGES)
def evaluate() -> None:
    """Test the model beside popularity and co-occurrence, with 95% intervals.

    Reads data/splits and models/generator, writes reports/metrics.json, ranks.parquet and two breakdowns.

    [dim]Examples:[/dim]

      python -m pipeline evaluate

      dvc exp run -S evaluate.beam=50
    """
    _run("evaluate")


@app.command(rich_help_panel=STAGES)
def track() -> None:
    """Show the result, write it as a page, and record it in MLflow, once however often it is restored.

    Reads dvc.lock and reports/, writes reports/index.html and one MLflow run.

    [dim]Examples:[/dim]

      python -m pipeline track

      MLFLOW_TRACKING_URI=http://localhost:5000 python -m pipeline track
    """
    _run("track")


@app.command(rich_help_panel=STAGES)
def fetch() -> None:
    """Download the raw files of `dataset` into data/raw, with resume; offline, say which file to put where.

    [dim]Examples:[/dim]

      python -m pipeline preset movielens-1m && python -m pipeline fetch && dvc repro
    """
    from pipeline.config import load_params
    from pipeline.ingest.fetch import fetch as download

    download(load_params())


# ---------------------------------------------------------------------------------------------------- experiments

@app.command(rich_help_panel=EXPERIMENTS)
def preset(
    name: Annotated[str | None, typer.Argument(help="A file of presets/, without .yaml.", show_default=False)] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", show_default=False,
                                                       help="One more value; repeat as needed.")] = None,
) -> None:
    """Write a published recipe into params.yaml, keeping its comments. Without a name: list them.

    Presets combine: each writes only the keys that it names, and `demo` brings every default back.

    [dim]Examples:[/dim]

      python -m pipeline preset

      python -m pipeline preset amazon-beauty --set ingest.path=DIR

      python -m pipeline preset tiger --set train.max_windows=1000000
    """
    from pipeline.presets import apply_preset, describe

    if name is None:
        for known, description in describe().items():
            print(f"{known:18}{description}")
        return
    changes = apply_preset(name, settings or [])
    for change in changes:
        print(f"  {change}")
    print(f"{len(changes)} values changed. Next: dvc repro" if changes else "params.yaml says so already.")


# ---------------------------------------------------------------------------------------------------- checks

@app.command(rich_help_panel=CHECKS)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
) -> None:
    """Check Python, torch, faiss, DVC, params.yaml, the raw log, MLflow's store and the disk. Exit code 1 on a failure.

    [dim]Examples:[/dim]

      python -m pipeline doctor

      python -m pipeline doctor --json
    """
    from pipeline.doctor import examine, show

    checks = examine(Path())
    show(checks, as_json)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)
