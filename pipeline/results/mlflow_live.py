"""The run of a training that goes on: found again after a stop, fed with points, and marked where its process died."""

import os
import socket
import time
from contextlib import suppress
from typing import Any

from pipeline.results.live import Validated
from pipeline.results.mlflow_client import entities, load_monitors, open_store, store_alone
from pipeline.results.mlflow_store import TRAINING, experiment_of, mark_dead, title_of, training_tag
from pipeline.results.parameters import value_text
from pipeline.results.run_names import RunName
from pipeline.results.run_table import set_view
from pipeline.results.sections import curve_metrics
from pipeline.results.seeds import KIND
from pipeline.stopping import started


class LiveRun:
    """A `LiveRun` is one run of MLflow, of kind `training` until `track` completes it.

    Raises:
        Exception: whatever the store answers.
    """

    def __init__(self, params: dict[str, Any], name: RunName, experiment: str, *, training: str, start: float):
        self._start = start
        tag = training_tag(training, start)
        with store_alone(silent=True):
            self._client = open_store()
            experiment_id = experiment_of(self._client, experiment)
            set_view(self._client, experiment_id)
            mark_dead(self._client, experiment_id)
            found = self._client.search_runs([experiment_id], f"tags.{TRAINING} = '{tag}'", max_results=1)
            process = f"{socket.gethostname()} {os.getpid()} {started(os.getpid())}"
            tags = {TRAINING: tag, KIND: "training", "process": process, **name.tags()}
            if found and found[0].data.tags.get(KIND) == "training":
                self._run_id = found[0].info.run_id
                self._client.update_run(self._run_id, status="RUNNING")
                self._client.set_tag(self._run_id, "process", process)
            else:
                made = self._client.create_run(experiment_id, start_time=int(start * 1000), tags=tags)
                self._run_id = made.info.run_id
                title = title_of(self._client, experiment_id, name, self._run_id, training)
                self._client.update_run(self._run_id, name=title)
        batch = [entities.Param(key, value_text(value)) for key, value in params.items()]
        for first in range(0, len(batch), 100):
            with suppress(Exception):  # a value that a run of the same training has otherwise, such as track.live
                self._client.log_batch(self._run_id, params=batch[first : first + 100])
        history = self._client.get_metric_history(self._run_id, "train/loss")
        self._known = {point.step for point in history}
        self._monitors = load_monitors()

    def log_point(self, point: Validated) -> None:
        """Log a validation once, with its numbers as history.csv has them."""
        step = int(point.row["step"])
        if step not in self._known:
            self._known.add(step)
            values = {name: round(value, 6) for name, value in curve_metrics(point.row).items()}
            self._log(values, point.at, step)

    def log_load(self) -> None:
        """Log the load of the machine, over the seconds since the start."""
        now = time.time()
        for monitor in self._monitors:
            monitor.collect_metrics()
            values = {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
            self._log(values, now, int(now - self._start))

    def end(self, status: str) -> None:
        """Set the status of a training that has ended; `track` completes the run."""
        self._client.set_terminated(self._run_id, status)

    def _log(self, values: dict[str, float], at: float, step: int) -> None:
        batch = [entities.Metric(name, value, int(at * 1000), step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=batch)
