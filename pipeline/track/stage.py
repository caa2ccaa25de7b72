"""Stage track shows the finished result as a page, as lines in the terminal, and as one run in MLflow.

The stage runs on every `dvc repro`. When everything else came from the cache, it changes nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SIDS, SPLITS, write_bytes
from pipeline.printing import say
from pipeline.project import shared_scratch
from pipeline.results.identity import read_result
from pipeline.results.parameters import Plain, flatten
from pipeline.results.ranks import Ranks
from pipeline.results.run_names import RunName
from pipeline.results.tracking_uri import how_to_see, is_local, tracking_uri
from pipeline.track.action_scoreboard import action_scoreboard_text, predicts_actions
from pipeline.track.config import TrackConfig
from pipeline.track.description import describe_run, pictures
from pipeline.track.known import remember
from pipeline.track.page import render_page
from pipeline.track.provenance import provenance
from pipeline.track.scoreboard import scoreboard_text

RANKS = "ranks.parquet"  # a row per user
LOCK = Path("dvc.lock")
PARAMS = Path("params.yaml")
REPORT_FILES = (  # files of reports/ that are attached to the run
    "index.html",
    "metrics.json",
    "details.json",
    "history.csv",
    "by_history.csv",
    "by_popularity.csv",
    "kept_by_level.csv",
    "kept_by_position.csv",
)


class TrackParams(Plain, Protocol):
    """`TrackParams` declares what the stage reads of params.yaml by name; the stage records all of params.yaml."""

    @property
    def seed(self) -> int: ...

    @property
    def strategy(self) -> str: ...

    @property
    def dataset(self) -> str: ...

    @property
    def track(self) -> TrackConfig: ...

    @property
    def strategies(self) -> Mapping[str, Any]: ...


def run(
    params: TrackParams,
    *,
    reports: Path = REPORTS,
    generator: Path = GENERATOR,
    interactions: Path = INTERACTIONS,
    sids: Path = SIDS,
    splits: Path = SPLITS,
    lock: Path = LOCK,
) -> dict[str, Any]:
    """Write reports/index.html, record the result in MLflow, and print it.

    Returns:
        The run's run_id and name, and `new`: whether this call recorded it.

    Raises:
        UserError: a part of the result is missing, or MLflow's store cannot be used (the page is written before).
    """
    # 1. The page and the lines, which need no MLflow.
    result = read_result(reports, interactions, sids, lock)
    flat = flatten(params)
    page = reports / "index.html"
    actions = predicts_actions(result.metrics)
    known = [] if actions else remember(result, flat, shared_scratch())
    write_bytes(page, render_page(result, flat, known).encode())
    say(
        f"strategy {params.strategy}, dataset {params.dataset}, seed {params.seed}",
        (action_scoreboard_text if actions else scoreboard_text)(result.metrics, params.strategy),
        f"report: {page}",
    )

    # 2. The run in MLflow, which is loaded only here.
    from pipeline.results.mlflow_store import record

    name = RunName.of(flat, params.strategies)
    tags = {**name.tags(result.hashes["interactions"]), "dataset": params.dataset, **provenance()}
    tables = [*(reports / file for file in REPORT_FILES), sids / "quality.json"]
    if params.track.user_ids:
        tables.append(reports / RANKS)
    artifacts = {**dict.fromkeys(tables, "report"), PARAMS: "pipeline", lock: "pipeline"}
    with TemporaryDirectory() as folder:
        drawn = pictures(result, known, Path(folder))
        recorded = record(
            result,
            flat,
            name,
            tags,
            params.track.experiment,
            {**dict.fromkeys(drawn, "report"), **artifacts},
            lambda run_id: describe_run(result, flat, name, run_id, [path.name for path in drawn]),
        )
    say(
        f"MLflow run {recorded.name} {'recorded' if recorded.new else 'is there already'}; to see all runs:",
        how_to_see(tracking_uri(), recorded.experiment_id),
    )
    if actions and params.track.log_model:
        say("the run has no model to serve: it ranks no items (train.task: ranking)")
    elif params.track.log_model:
        from pipeline.results.mlflow_model import log_model

        about = {key: tags[key] for key in ("strategy", "seed", "dataset")}
        log_model(
            recorded.run_id,
            recorded.experiment_id,
            generator=generator,
            splits=splits,
            ranks=reports / RANKS if params.track.user_ids or is_local(tracking_uri()) else None,
            tags=about,
            origin=Ranks.read(reports / RANKS).origin,
        )
    return {"run_id": recorded.run_id, "name": recorded.name, "new": recorded.new}
