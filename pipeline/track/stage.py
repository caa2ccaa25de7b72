"""Stage track: the finished result as a page, as lines in the terminal, and as one run in MLflow.

Runs on every `dvc repro`, also when everything else came from the cache, and then changes nothing.
"""

from pathlib import Path
from typing import Any, Protocol

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SIDS, write_bytes
from pipeline.results.identity import read_result
from pipeline.results.parameters import Plain, flatten
from pipeline.results.tracking_uri import how_to_see, tracking_uri
from pipeline.track.config import TrackConfig
from pipeline.track.page import render_page
from pipeline.track.provenance import provenance
from pipeline.track.scoreboard import scoreboard_text

LOCK, PARAMS = Path("dvc.lock"), Path("params.yaml")
REPORT_FILES = (
    "index.html",
    "metrics.json",
    "history.csv",
    "by_history.csv",
    "by_popularity.csv",
    "kept_by_level.csv",
    "kept_by_position.csv",
)


class TrackParams(Plain, Protocol):
    """What the stage reads of params.yaml by name; it records all of it."""

    @property
    def seed(self) -> int: ...

    @property
    def strategy(self) -> str: ...

    @property
    def dataset(self) -> str: ...

    @property
    def track(self) -> TrackConfig: ...


def run(
    params: TrackParams,
    *,
    reports: Path = REPORTS,
    generator: Path = GENERATOR,
    interactions: Path = INTERACTIONS,
    sids: Path = SIDS,
    lock: Path = LOCK,
) -> dict[str, Any]:
    """Write reports/index.html, record the result in MLflow, and print it.

    Returns:
        run_id, name and whether the run is new.

    Raises:
        UserError: a part of the result is missing, or MLflow's store cannot be used (the page is written before).
    """
    result, flat = read_result(reports, interactions, sids, lock), flatten(params)
    page = reports / "index.html"
    write_bytes(page, render_page(result, flat).encode())
    print(
        f"strategy {params.strategy}, dataset {params.dataset}, seed {params.seed}",
        scoreboard_text(result.metrics, params.strategy),
        f"report: {page}",
        sep="\n",
        flush=True,
    )

    from pipeline.results.mlflow_store import record

    tags = {"strategy": params.strategy, "seed": str(params.seed), "dataset": params.dataset, **provenance()}
    shown = [*(reports / name for name in REPORT_FILES), sids / "quality.json"]
    artifacts = {**dict.fromkeys(shown, "report"), PARAMS: "pipeline", lock: "pipeline"}
    if params.track.log_model:
        artifacts[generator] = "model"
    recorded = record(result, flat, tags, params.track.experiment, artifacts)
    print(
        f"MLflow run {recorded.name} {'recorded' if recorded.new else 'is there already'}; to see all runs:",
        how_to_see(tracking_uri(), recorded.experiment_id),
        sep="\n",
    )
    return {"run_id": recorded.run_id, "name": recorded.name, "new": recorded.new}
