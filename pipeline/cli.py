"""The command line: one command per stage, and what surrounds them.

Thin on purpose. Each command imports what it needs when it runs, so that `--help` loads neither torch, pandas nor
mlflow. `main` is where errors meant for the user become three plain lines and exit code 1.
"""

import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Params

STAGES, EXPERIMENTS, CHECKS, SERVE = "Stages", "Experiments", "Checks", "Serve"
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
        sys.exit(
            _explain(
                UserError(
                    f"the disk is full or a file may not grow further{where}: {error.strerror}",
                    "the command stopped; what was complete before is still there",
                    "free some space, then run the same command again",
                )
            )
        )


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


def _params() -> "Params":
    """All of params.yaml, checked before the libraries of a stage are loaded."""
    from pipeline.config import load_params

    return load_params()


@app.command(rich_help_panel=STAGES)
def check() -> None:
    """Refuse a bad value in params.yaml before DVC removes any output.

    Every other stage depends on it. Reads the whole of params.yaml, writes data/checked.txt, a line that never changes:
    a new value runs this stage, and of the others only those that read the value.

    [dim]Examples:[/dim]

      python -m pipeline check

      dvc exp run -S train.learning_rate=-1    (fails, and everything is still there)
    """
    params = _params()
    from pipeline.check.stage import run

    run(params)


@app.command(rich_help_panel=STAGES)
def ingest() -> None:
    """Clean the raw log, and number its users and items.

    Drops bad rows and repeats, keeps the k-core. Reads ingest.path, writes data/interactions; every bad row is in
    rejects.parquet there, with its reason.

    [dim]Examples:[/dim]

      python -m pipeline ingest

      dvc exp run -S dataset=custom -S ingest.path=logs
    """
    params = _params()
    from pipeline.ingest.stage import run

    run(params)


@app.command(rich_help_panel=STAGES)
def embed() -> None:
    """Give every item a vector, from its text and images or as you bring it.

    A killed run goes on after its last shard. Reads data/interactions, writes data/embeddings.

    [dim]Examples:[/dim]

      python -m pipeline embed

      torchrun --nproc_per_node 4 -m pipeline embed

      dvc exp run -S embed.encoder=precomputed -S embed.path=vectors.npy
    """
    params = _params()
    from pipeline.embed.stage import run

    run(params)


@app.command(rich_help_panel=STAGES)
def quantize() -> None:
    """Turn the vectors into Semantic IDs, one per item.

    A last digit keeps apart what the codes do not. Reads data/embeddings, writes data/sids with a quality report
    (collisions, codes used, reconstruction error, neighbours kept together).

    [dim]Examples:[/dim]

      python -m pipeline quantize

      dvc exp run -S quantize.method=rqvae -S quantize.codes=256
    """
    params = _params()
    from pipeline.quantize.stage import run

    run(params)


@app.command(rich_help_panel=STAGES)
def split() -> None:
    """Decide what trains, what chooses the model, and what tests.

    Reads data/interactions, writes data/splits.

    [dim]Examples:[/dim]

      python -m pipeline split

      dvc exp run -S split.max_history=50
    """
    params = _params()
    from pipeline.split.stage import run

    run(params)


@app.command(rich_help_panel=STAGES)
def train() -> None:
    """Train the generator by the chosen strategy.

    A killed run resumes from its last checkpoint. Reads data/sids and data/splits, writes models/generator,
    reports/history.csv and reports/timings.json.

    [dim]Examples:[/dim]

      python -m pipeline train

      torchrun --nproc_per_node 2 -m pipeline train

      dvc exp run -S train.learning_rate=3e-4 -S train.max_windows=1000000
    """
    params = _params()
    from pipeline.train.stage import run

    run(params)


@app.command(rich_help_panel=STAGES)
def evaluate() -> None:
    """Test the model beside what counting alone reaches.

    Recall, NDCG and MRR with 95% intervals, popularity and co-occurrence on the same users.

    Reads data/splits and models/generator, writes reports/metrics.json, ranks.parquet and two breakdowns.

    [dim]Examples:[/dim]

      python -m pipeline evaluate

      dvc exp run -S evaluate.beam=50
    """
    params = _params()
    from pipeline.evaluate.stage import run

    run(params)


@app.command(rich_help_panel=STAGES)
def track() -> None:
    """Show the result, as a page and as a run in MLflow.

    One run per result, however often it is made or restored.

    Reads dvc.lock and reports/, writes reports/index.html and one MLflow run.

    [dim]Examples:[/dim]

      python -m pipeline track

      MLFLOW_TRACKING_URI=http://localhost:5000 python -m pipeline track
    """
    params = _params()
    from pipeline.track.stage import run

    run(params)


@app.command(rich_help_panel=STAGES)
def fetch(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL]...", show_default=False, help="Instead of the publisher's; for a custom dataset."
        ),
    ] = None,
) -> None:
    """Download the raw files of `dataset` into data/raw.

    An interrupted download goes on where it stopped; without a connection, says which file to put where.

    [dim]Examples:[/dim]

      python -m pipeline preset movielens-1m && python -m pipeline fetch && dvc repro

      python -m pipeline fetch https://example.org/interactions.csv.gz
    """
    from pipeline.ingest.fetch import fetch as download

    folder = download(_params().dataset, urls=urls)[0].parent
    print(f"queued experiments run in copies of what is tracked; before you queue one: dvc add {folder}")


# ---------------------------------------------------------------------------------------------------- experiments


@app.command(rich_help_panel=EXPERIMENTS)
def preset(
    name: Annotated[str | None, typer.Argument(help="A file of presets/, without .yaml.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", show_default=False, help="One more value; repeat as needed."),
    ] = None,
) -> None:
    """Write a published recipe into params.yaml, or list them.

    Comments and order stay. Presets combine: each writes only the keys that it names, and `demo` brings every default
    back.

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


@app.command(rich_help_panel=EXPERIMENTS)
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            show_default=False,
            help="Experiments, commits, `workspace` or folders with reports; NAME=RUN,RUN puts runs into one arm. "
            "None: the experiments of this commit and the workspace.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=100, help="Resamples behind each interval.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
) -> None:
    """Set finished runs against the first one, user by user.

    Differences with intervals, the smallest that could have been seen, and the words `better` and `not worse`.
    Runs that differ in their seed only are one arm; seeds are resampled before users.

    [dim]Examples:[/dim]

      python -m pipeline compare

      python -m pipeline compare main workspace

      python -m pipeline compare full=yolky-sera,tubal-bean rastp=swept-prof,reedy-daks
    """
    from pipeline.results.compare import compare as differences
    from pipeline.results.compare import report, rows

    comparisons = differences(runs or [], samples=samples)
    print(json.dumps(rows(comparisons), indent=2) if as_json else report(comparisons))


@app.command(rich_help_panel=EXPERIMENTS)
def gradients(
    batches: Annotated[int, typer.Option(min=1, help="How many batches are averaged.")] = 20,
    windows: Annotated[int, typer.Option(min=4, help="Training windows of each.")] = 256,
) -> None:
    """Show how strongly the trained model would learn from tokens of each entropy (SkipGR's Figure 2).

    Norm of the gradient of the mean loss of each quartile of tokens, over all levels and of each level. Reads
    data/splits and models/generator, writes reports/gradients.csv and reports/gradients.svg.

    [dim]Examples:[/dim]

      python -m pipeline gradients

      python -m pipeline gradients --batches 100 --windows 1024
    """
    from pipeline.evaluate.entropy_gradients import gradients as measured

    print(measured(batches=batches, windows=windows).to_string(index=False, float_format="{:.4f}".format))


# ---------------------------------------------------------------------------------------------------- checks


@app.command(rich_help_panel=CHECKS)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
) -> None:
    """Check whether this machine and project are ready to run.

    Python, torch, faiss, DVC, git, params.yaml, the raw log, MLflow's store, the disk. Exit code 1 when one fails.

    [dim]Examples:[/dim]

      python -m pipeline doctor

      python -m pipeline doctor --json
    """
    from pipeline.doctor import examine, show

    checks = examine(Path())
    show(checks, as_json)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


# ---------------------------------------------------------------------------------------------------- serve


@app.command(rich_help_panel=SERVE)
def recommend(
    user: Annotated[str | None, typer.Option(help="Raw id: go on from all that the log has of this user.")] = None,
    history: Annotated[str | None, typer.Option(metavar="ID,ID,...", help="Raw item ids, oldest first.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    filter_seen: Annotated[bool, typer.Option("--filter-seen", help="Leave out items of the history.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
) -> None:
    """Ask the trained model for the next items.

    Prints raw id, score (log-probability of the Semantic ID) and title. A list of items is seen whole, a user as
    in evaluation (skipgr.at_eval).

    [dim]Examples:[/dim]

      python -m pipeline recommend --user u17 -k 5

      python -m pipeline recommend --history v12,v7,v90
    """
    from pipeline.evaluate.recommend import recommend as best

    items = best(user=user, history=_split(history), k=k, filter_seen=filter_seen)
    if as_json:
        print(json.dumps([vars(item) for item in items], indent=2))
        return
    width = max(len(item.item) for item in items)
    for place, item in enumerate(items, start=1):
        print(f"{place:>3}  {item.item:{width}}  {item.score:8.3f}  {item.title}".rstrip())


@app.command(rich_help_panel=SERVE)
def sids(
    item: Annotated[str, typer.Option(help="Raw id of the item.")],
    titles: Annotated[int, typer.Option(min=0, help="Other items that each prefix names, at most.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object, nothing else.")] = False,
) -> None:
    """Show an item's Semantic ID, and which items share its beginning.

    Its codes, then for each prefix how many items stand below it and the titles of some.

    [dim]Examples:[/dim]

      python -m pipeline sids --item v00017

      python -m pipeline sids --item v00017 --titles 20 --json
    """
    from dataclasses import asdict

    from pipeline.quantize.lookup import look_up, report

    found = look_up(item, titles)
    print(json.dumps(asdict(found), indent=2) if as_json else report(found))


@app.command(rich_help_panel=SERVE)
def explain(
    user: Annotated[str | None, typer.Option(help="Raw id: all that the log has of this user.")] = None,
    history: Annotated[str | None, typer.Option(metavar="ID,ID,...", help="Raw item ids, oldest first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
) -> None:
    """Show what the trained model makes of the items of a history (strategies rastp and intrr).

    One line per item, oldest first. rastp: its codes, a dash for each that is dropped, the separator as a bar. intrr:
    how much of each of its codes is in the item's vector, and which other code has more.

    [dim]Examples:[/dim]

      python -m pipeline explain --user u17

      python -m pipeline explain --history v12,v7,v90 --json
    """
    from pipeline.evaluate.explain import explain as tokens
    from pipeline.evaluate.explain import report

    loaded, rows = tokens(user=user, history=_split(history))
    print(json.dumps([vars(row) for row in rows], indent=2) if as_json else report(loaded, rows))


def _split(history: str | None) -> list[str] | None:
    return history.split(",") if history else None
