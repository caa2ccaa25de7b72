"""One command per stage of dvc.yaml, and `fetch`, which downloads the raw files that `ingest` reads."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.printing import say

if TYPE_CHECKING:
    from pipeline.config import Params

PANEL = "Stages"
commands = typer.Typer()


def _params() -> "Params":
    """Load and check params.yaml, before the libraries of a stage are loaded."""
    from pipeline.config import load_params

    return load_params()


@commands.command(rich_help_panel=PANEL)
def check() -> None:
    """Refuse a bad value in params.yaml before DVC removes any output.

    Reads the whole of params.yaml and writes data/checked.txt, a line that never changes. Every other stage depends on
    this file: a new value runs this stage, and of the others only those that read the value.

    [dim]Examples:[/dim]

      python -m pipeline check

      dvc exp run -S train.learning_rate=-1    (fails, and everything is still there)
    """
    params = _params()
    from pipeline.check.stage import run
    from pipeline.ingest.sources import find_source

    run(params, find_log=find_source)


@commands.command(rich_help_panel=PANEL)
def ingest() -> None:
    """Clean the raw log, and number its users and items.

    Leaves out bad rows, repeated interactions and all outside the k-core. Reads ingest.path, writes data/interactions;
    rejects.parquet there lists every bad row with its reason.

    [dim]Examples:[/dim]

      python -m pipeline ingest

      dvc exp run -S dataset=custom -S ingest.path=logs
    """
    params = _params()
    from pipeline.ingest.stage import run

    run(params)


@commands.command(rich_help_panel=PANEL)
def embed() -> None:
    """Give every item a vector, from its text and images or from a file of vectors.

    A killed run goes on after its last shard. Reads data/interactions, writes data/embeddings.

    [dim]Examples:[/dim]

      python -m pipeline embed

      torchrun --nproc_per_node 4 -m pipeline embed

      dvc exp run -S embed.encoder=precomputed -S embed.path=vectors.npy
    """
    params = _params()
    from pipeline.embed.stage import run
    from pipeline.project import shared_scratch

    run(params, scratch=shared_scratch())


@commands.command(rich_help_panel=PANEL)
def split() -> None:
    """Choose the interactions for training, for validation and for test.

    Reads data/interactions, writes data/splits.

    [dim]Examples:[/dim]

      python -m pipeline split

      dvc exp run -S split.max_history=50
    """
    params = _params()
    from pipeline.split.stage import run

    run(params)


@commands.command(rich_help_panel=PANEL)
def count() -> None:
    """Count how often items come together in the training part.

    The counting baselines rank by these counts; validation chooses their rules. Reads data/splits, writes
    models/counting.

    [dim]Examples:[/dim]

      python -m pipeline count

      dvc exp run -S evaluate.cooccurrence_window=5
    """
    params = _params()
    from pipeline.count.stage import run

    run(params)


@commands.command(rich_help_panel=PANEL)
def quantize() -> None:
    """Turn the vectors into Semantic IDs, one per item.

    A deduplication digit tells items of equal codes apart. Reads data/embeddings (with quantize.interactions also
    data/splits), writes data/sids with a quality report (collisions, used codes, reconstruction error, how often
    nearest neighbours share codes).

    [dim]Examples:[/dim]

      python -m pipeline quantize

      dvc exp run -S quantize.method=rqvae -S quantize.codes=256

      dvc exp run -S embed.encoder=none -S quantize.interactions=1    (a log of ids alone)
    """
    params = _params()
    from pipeline.quantize.stage import run

    run(params)


@commands.command(rich_help_panel=PANEL)
def train() -> None:
    """Train the generator by the chosen strategy.

    A killed run resumes from its last checkpoint. Reads data/sids and data/splits, writes models/generator,
    reports/history.csv and reports/timings.json. Its curves are in MLflow while it runs (track.live).

    [dim]Examples:[/dim]

      python -m pipeline train

      torchrun --nproc_per_node 2 -m pipeline train

      dvc exp run -S train.learning_rate=3e-4 -S train.max_windows=1000000
    """
    params = _params()
    from pipeline.project import shared_scratch
    from pipeline.results.live import Live, leads
    from pipeline.results.parameters import flatten
    from pipeline.results.run_names import RunName
    from pipeline.train.stage import run

    flat = flatten(params)
    with Live(flat, RunName.of(flat, params.strategies), params.track.experiment) as live:
        run(params, scratch=shared_scratch(), observer=live if params.track.live and leads() else None)


@commands.command(rich_help_panel=PANEL)
def dense() -> None:
    """Train the dense retriever, a small network over items, beside the generator.

    It is the same for every strategy. A killed run resumes from its last checkpoint. Reads data/embeddings and
    data/splits, writes models/dense and reports/dense.json.

    [dim]Examples:[/dim]

      python -m pipeline dense

      dvc exp run -S dense.text=false -S dense.dim=128

      dvc exp run -S dense.enabled=false    (no retriever)
    """
    params = _params()
    from pipeline.dense.stage import run
    from pipeline.project import shared_scratch

    run(params, scratch=shared_scratch())


@commands.command(rich_help_panel=PANEL)
def evaluate() -> None:
    """Evaluate the model and the counting baselines on the test targets.

    Computes recall, NDCG and MRR with 95% intervals, for the model and for popularity and co-occurrence.

    Reads data/splits, models/counting and models/generator, writes reports/metrics.json, ranks.parquet and two
    breakdowns.

    [dim]Examples:[/dim]

      python -m pipeline evaluate

      dvc exp run -S evaluate.beam=50
    """
    params = _params()
    from pipeline.evaluate.stage import run

    run(params)


@commands.command(rich_help_panel=PANEL)
def track() -> None:
    """Record the result as a page and as a run in MLflow.

    A result has one run in MLflow, however often it is made or restored.

    Reads dvc.lock and reports/, writes reports/index.html and one MLflow run.

    [dim]Examples:[/dim]

      python -m pipeline track

      MLFLOW_TRACKING_URI=http://localhost:5000 python -m pipeline track
    """
    params = _params()
    from pipeline.track.stage import run

    run(params)


@commands.command(rich_help_panel=PANEL)
def fetch(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="URL",
            show_default=False,
            help="Addresses to use instead of the publisher's, as for dataset custom; or a category of amazon-2014, "
            "amazon-2018 or amazon-2023.",
        ),
    ] = None,
) -> None:
    """Download the raw files of `dataset` into data/raw.

    An interrupted download goes on where it stopped. Without a connection the command says which file to put where.

    [dim]Examples:[/dim]

      python -m pipeline preset movielens-1m && python -m pipeline fetch && dvc repro

      python -m pipeline preset amazon-2023 && python -m pipeline fetch All_Beauty && dvc repro

      python -m pipeline fetch https://example.org/interactions.csv.gz
    """
    from pipeline.ingest.fetch import fetch as download

    params = _params()
    folder = download(params.dataset, urls=urls, max_bytes=params.ingest.max_file_bytes)[0].parent
    say(f"queued experiments run in copies of what is tracked; before you queue one: dvc add {folder}")
