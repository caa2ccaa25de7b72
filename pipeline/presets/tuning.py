"""Try the settings of a space on validation, several at once, and go on where a search was cut.

Each trial is a process (tuning_trial.py) with a folder below .sidpipe/tune/, named by a hash of its parameters, its
inputs and the code of training. So a trial that has a result is never run again, also after another search, and one
that was cut goes on from its checkpoint. The test items have no part in any of it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts import EMBEDDINGS, INTERACTIONS, SCRATCH, SPLITS, Splits, fingerprint, read_json
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.manifest import write_bytes
from pipeline.presets.tuning_data import check_data
from pipeline.presets.tuning_space import Space, with_changes
from pipeline.presets.tuning_trial import LOG, RESULT, SPEC
from pipeline.printing import say, shown
from pipeline.results.parameters import value_text
from pipeline.strategies.registry import settings_types
from pipeline.training.code import code_fingerprint

LOOK = 0.2  # seconds between two looks at the trials at work
EVERY = 15.0  # seconds between two lines about each of them
FOLDER = SCRATCH / "tune"
# Sections that shape no trial, and keys of `train` that say where it runs.
BESIDE = ("dataset", "ingest", "embed", "dense", "evaluate", "track")
BESIDE_OF_TRAIN = ("device", "threads", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class TuningTrial:
    """A trial: its number, what it changes in params.yaml, all its parameters, and the folder that holds it."""

    number: int
    changes: Mapping[str, Any]
    params: Params
    key: str
    folder: Path
    sids: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """Return what result.json says, None where the trial has not ended."""
        path = self.folder / RESULT
        return read_json(path) if path.exists() else None

    @property
    def words(self) -> str:
        """Return the changes as words of `dvc exp run`."""
        return words_of(self.changes) or "params.yaml as it stands"


@dataclass
class TuningSearch:
    """The trials of a search, and those that failed in this call: number -> why."""

    trials: list[TuningTrial]
    select: str
    failed: dict[int, str] = field(default_factory=dict)

    def finished(self) -> list[tuple[TuningTrial, dict[str, Any]]]:
        """Return the trials that have a result, the best first; of equals the earlier."""
        found = [(trial, result) for trial in self.trials if (result := trial.result) is not None]
        sign = 1 if self.select == "loss" else -1
        return sorted(found, key=lambda pair: (sign * pair[1]["value"], pair[0].number))

    @property
    def key(self) -> str:
        """Return what names the search: the trial of params.yaml as it stands, which all searches on it share."""
        return self.trials[0].key


def words_of(changes: Mapping[str, Any]) -> str:
    """Return changes as `-S key=value` words."""
    return " ".join(f"-S {key}={_word(value)}" for key, value in changes.items())


def _word(value: Any) -> str:
    text = value_text(value)
    return f"'{text}'" if set(text) & set(" [{,") else text


def plan(space: Space, params: Params, folder: Path = FOLDER) -> TuningSearch:
    """Return the trials of the space; of those with the same parameters, which would share a folder, the first alone.

    Raises:
        UserError: the data is not there or was made with other settings, a trial's parameters are refused, a key
            changes no trial, or the losses by which trials should be ranked measure different things.
    """
    check_data(params, Splits.read(SPLITS))
    inputs = {path.name: fingerprint(path) for path in (INTERACTIONS, EMBEDDINGS, SPLITS)}
    code = code_fingerprint("train")
    trials: dict[str, TuningTrial] = {}
    used: set[str] = set()  # keys of the space that some trial reads
    for number, changes in enumerate(space.proposals()):
        own = with_changes(params, changes, f"trial {number}")
        if params.train.select == "loss" and (key := _other_loss(params, own)):
            raise UserError(
                f"trial {number} ({words_of(changes)}) has a loss that cannot be ranked beside that of params.yaml",
                f"train.select is loss, and with another {key} the loss measures something else",
                "set train.select to recall_at_10 or another metric of the ranking, or leave that key out of the space",
            )
        shaping = {name: value for name, value in own.plain().items() if name not in (*BESIDE, *_unused(own))}
        shaping["train"] = {key: value for key, value in shaping["train"].items() if key not in BESIDE_OF_TRAIN}
        key = fingerprint(shaping, inputs, code)[:16]
        made_from = {key: value for key, value in own.plain()["quantize"].items() if key != "device"}
        sids = folder / "sids" / fingerprint(made_from, own.seed, inputs)[:16]
        trial = TuningTrial(number=number, changes=changes, params=own, key=key, folder=folder / key, sids=sids)
        trials.setdefault(key, trial)
        used |= {name for name in space.keys if name.split(".")[0] not in _unused(own)}
    if idle := [name for name in space.keys if name not in used]:
        section = idle[0].split(".")[0]
        needs = "backbone.name: [t5]" if section == "quantize" else f"strategy: [{section}]"
        raise UserError(
            f"{idle[0]} changes no trial",
            f"no trial uses the section {section} of params.yaml",
            f"leave it out of the space, or add what uses it, such as {needs}",
        )
    return TuningSearch([*trials.values()], params.train.select)


def _unused(params: Params) -> set[str]:
    """Return the sections that these parameters leave unused: other strategies', and `quantize` of items alone."""
    others = set(settings_types()) - set(params.strategy.split("+"))
    return others | {"quantize"} if params.backbone.over_items else others


def _other_loss(params: Params, other: Params) -> str | None:
    """Return a key that makes the loss of a trial one of other targets, None where both losses measure the same.

    The loss is the cross-entropy of what the network predicts: the codes of a Semantic ID or an item, and actions.
    """
    if params.train.task != other.train.task:
        return "train.task"
    if params.backbone.over_items != other.backbone.over_items:
        return "backbone.name"
    if params.backbone.actions != other.backbone.actions:
        return "backbone.actions"
    if params.backbone.over_items:
        return None
    ours, theirs = params.plain()["quantize"], other.plain()["quantize"]
    return next((f"quantize.{key}" for key in ours if key not in BESIDE_OF_TRAIN and ours[key] != theirs[key]), None)


def run_search(
    search: TuningSearch, jobs: int, worker: Sequence[str] = ("-m", "pipeline.presets.tuning_trial")
) -> None:
    """Run the trials without a result, `jobs` at once, in their order. A failed one is reported, and the rest goes on.

    Args:
        worker: arguments of Python that run a trial, for tests.
    """
    waiting = [trial for trial in search.trials if trial.result is None]
    if done := len(search.trials) - len(waiting):
        say(f"tune: {done} of {len(search.trials)} trials have a result already")
    running: list[tuple[TuningTrial, subprocess.Popen[bytes]]] = []
    told = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.pop(0)
                running.append((trial, _start(trial, jobs, worker)))
            time.sleep(LOOK)
            if time.monotonic() - told >= EVERY:
                told = time.monotonic()
                for trial, _ in running:
                    say(f"tune: trial {trial.number}: {_last_line(trial)}")
            for trial, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((trial, process))
                _tell(search, trial, process.returncode)
    finally:
        for _, process in running:
            process.kill()
            process.wait()


def _start(trial: TuningTrial, jobs: int, worker: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Write the trial's spec.json and start its process, which ends with this one."""
    params = trial.params.plain()
    params["train"]["threads"] = params["train"]["threads"] or max(1, len(os.sched_getaffinity(0)) // jobs)
    inputs = {"interactions": INTERACTIONS, "embeddings": EMBEDDINGS, "splits": SPLITS}
    spec = {"params": params, "inputs": {name: str(path) for name, path in inputs.items()}, "sids": str(trial.sids)}
    write_bytes(trial.folder / SPEC, json.dumps(spec).encode())
    say(f"tune: trial {trial.number} starts: {trial.words}")
    with (trial.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *worker, str(trial.folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C is for this process, which ends the trials
        )


def _last_line(trial: TuningTrial) -> str:
    """Return what a trial at work said last."""
    lines = (trial.folder / LOG).read_text(errors="replace").strip().splitlines()
    return shown(lines[-1]) if lines else "begins"


def _tell(search: TuningSearch, trial: TuningTrial, code: int) -> None:
    """Print how a trial ended, and remove what it no longer needs."""
    result = trial.result
    if code == 0 and result is not None:
        say(f"tune: trial {trial.number} has {search.select} {result['value']:.4f} on validation")
        shutil.rmtree(trial.folder / "scratch", ignore_errors=True)
        shutil.rmtree(trial.folder / "generator", ignore_errors=True)
        return
    lines = (trial.folder / LOG).read_text(errors="replace").strip().splitlines() or [f"exit code {code}"]
    said = [line for line in lines if line.startswith("error: ")] or lines
    search.failed[trial.number] = shown(said[-1].removeprefix("error: "))
    say(
        f"tune: trial {trial.number} failed: {search.failed[trial.number]}",
        f"  all that it said: {trial.folder / LOG}",
        error=True,
    )
