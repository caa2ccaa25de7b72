"""Group the runs that differ in their seed only under one run, which has their mean and its interval."""

import statistics
from collections.abc import Sequence
from typing import Any

from pipeline.results.mlflow_client import entities

KIND = "run_kind"  # a tag: result, training (of which nothing is evaluated yet) or seeds
MEANS = (
    "test/recall_at_10",
    "test/ndcg_at_10",
    "test/auc",
    "test/gauc",
    "baseline/cooccurrence_recall_at_10",
    "cost/train_seconds",
    "cost/windows_per_second",
)
WITH_INTERVAL = ("test/recall_at_10", "test/ndcg_at_10", "test/auc", "test/gauc")
AT_MOST = 1000  # runs of one setting that are looked at


def group_seeds(client: Any, experiment_id: str, setting: str) -> None:
    """Put the finished results of a setting under one run, once they have two seeds; of one seed the newest counts."""
    of_setting = f"tags.setting = '{setting}'"
    runs = [
        run
        for run in client.search_runs([experiment_id], f"{of_setting} and tags.{KIND} = 'result'", max_results=AT_MOST)
        if run.info.status == "FINISHED"
    ]
    newest = {run.data.tags["seed"]: run for run in sorted(runs, key=lambda run: run.info.end_time or 0)}
    if len(newest) < 2:
        return
    found = client.search_runs([experiment_id], f"{of_setting} and tags.{KIND} = 'seeds'", max_results=1)
    parent = found[0] if found else _make_parent(client, experiment_id, runs[-1])
    run_id = parent.info.run_id
    for run in runs:
        if run.data.tags.get("mlflow.parentRunId") != run_id:
            client.set_tag(run.info.run_id, "mlflow.parentRunId", run_id)
    seeds = sorted(newest, key=int)
    _log_means(client, run_id, [newest[seed].data.metrics for seed in seeds], max(run.info.end_time for run in runs))
    first = newest[seeds[0]]
    client.update_run(run_id, name=first.info.run_name.replace(f" s{seeds[0]}", f", {len(seeds)} seeds", 1))
    client.set_tag(run_id, "mlflow.note.content", _note(seeds))
    client.set_tag(run_id, "seeds", ", ".join(seeds))
    client.set_terminated(run_id, "FINISHED", end_time=max(run.info.end_time for run in runs))


def _make_parent(client: Any, experiment_id: str, run: entities.Run) -> entities.Run:
    shared = ("strategy", "backbone", "data", "setting")
    tags = {KIND: "seeds", **{name: run.data.tags[name] for name in shared}}
    made: entities.Run = client.create_run(experiment_id, start_time=run.info.start_time, tags=tags)
    return made


def _log_means(client: Any, run_id: str, metrics: Sequence[dict[str, float]], at: int) -> None:
    """Log the means with the number of seeds as step, so that the newest is shown."""
    told: dict[str, float] = {}
    for name in MEANS:
        values = [one[name] for one in metrics if name in one]
        if len(values) == len(metrics):
            told[name] = statistics.fmean(values)
            if name in WITH_INTERVAL:
                told[f"{name}_low"], told[f"{name}_high"] = interval_of_mean(values)
    batch = [entities.Metric(name, value, at, len(metrics)) for name, value in told.items()]
    client.log_batch(run_id, metrics=batch)


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the mean of two or more runs, by Student's t."""
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def _note(seeds: Sequence[str]) -> str:
    return (
        f"Mean of the runs with seeds {', '.join(seeds)}, which are equal in every other setting; of runs with one "
        "seed the newest counts. The metrics `_low` and `_high` are the 95% interval of the mean over seeds (Student's "
        "t), which is wide for few seeds."
    )
