"""Group the runs that differ in their seed only under one run, which has their mean and its interval."""

import statistics
from collections.abc import Sequence
from typing import Any

from pipeline.results.mlflow_client import MlflowException, entities

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
TURNS = 5  # in which the mean of one setting is written, at most
DELETED = "INVALID_PARAMETER_VALUE"  # the error code of a change to a run that another machine has deleted


def group_seeds(client: Any, experiment_id: str, setting: str) -> None:
    """Put the finished results of a setting under one run, once they have two seeds; of one seed the newest counts.

    Other machines may do the same at the same moment. Each looks again after it has written, and begins anew where a
    result or a second such run came meanwhile: so the machine that wrote last has written the mean of all results.
    """
    for turn in range(1, TURNS + 1):
        results, parents = _found(client, experiment_id, setting)
        if len({run.data.tags["seed"] for run in results}) < 2:
            return
        try:
            _group(client, experiment_id, results, parents)
        except MlflowException as error:
            if turn == TURNS or error.error_code != DELETED:
                raise
        else:
            now, parents = _found(client, experiment_id, setting)
            if len(parents) == 1 and {*map(_run_id, now)} == {*map(_run_id, results)}:
                return


def _found(client: Any, experiment_id: str, setting: str) -> tuple[list[entities.Run], list[entities.Run]]:
    """Return the finished results of a setting, and the runs that have their mean."""
    of_setting = f"tags.setting = '{setting}' and tags.{KIND}"
    results = client.search_runs([experiment_id], f"{of_setting} = 'result'", max_results=AT_MOST)
    parents = client.search_runs([experiment_id], f"{of_setting} = 'seeds'", max_results=AT_MOST)
    return [run for run in results if run.info.status == "FINISHED"], parents


def _group(client: Any, experiment_id: str, results: list[entities.Run], parents: list[entities.Run]) -> None:
    """Put results under the first of `parents`, or under a new run, and delete the other parents."""
    newest = {run.data.tags["seed"]: run for run in sorted(results, key=lambda run: run.info.end_time or 0)}
    parent = min(parents, key=_run_id) if parents else _make_parent(client, experiment_id, results[-1])
    run_id = _run_id(parent)
    for run in parents:
        if run is not parent:
            client.delete_run(_run_id(run))
    for run in results:
        if run.data.tags.get("mlflow.parentRunId") != run_id:
            client.set_tag(_run_id(run), "mlflow.parentRunId", run_id)
    seeds = sorted(newest, key=int)
    end = max(run.info.end_time for run in results)
    _log_means(client, run_id, [newest[seed].data.metrics for seed in seeds], end)
    first = newest[seeds[0]]
    client.update_run(run_id, name=first.info.run_name.replace(f" s{seeds[0]}", f", {len(seeds)} seeds", 1))
    client.set_tag(run_id, "mlflow.note.content", _note(seeds))
    client.set_tag(run_id, "seeds", ", ".join(seeds))
    client.set_terminated(run_id, "FINISHED", end_time=end)


def _run_id(run: entities.Run) -> str:
    return str(run.info.run_id)


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
