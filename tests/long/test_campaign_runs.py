"""A campaign as a user runs it: killed in the middle, it goes on; the results are those of an undisturbed one."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign_world import TINY, campaign_of, command, entry
from patience import wait_until

from benchmarks.campaign_record import record_all
from benchmarks.campaign_rows import Results, read_rows
from benchmarks.campaign_worker import run
from benchmarks.torture.process import children
from pipeline.artifacts import read_json
from pipeline.config import build_params
from pipeline.results.compare import compare
from pipeline.stopping import started

ROWS = [entry(seeds=(1, 2)), entry("rastp", rastp__after_layer=1), entry("skipgr", measure="cost")]
CHECKPOINT = "work/*/scratch/checkpoints/*/checkpoint.pt"


def quality(folder: Path) -> dict[tuple[str, int], Any]:
    records = Results(folder / "out").records()
    return {(r["arm"], r["seed"]): r["figures"] for r in records if r["measure"] == "quality"}


def kill_in_a_training(folder: Path) -> bool:
    """Starts the campaign and kills it once a row has a checkpoint; returns whether that row was still at work."""
    process = command(folder)

    def begun() -> bool:
        return bool(list(folder.glob(CHECKPOINT))) or process.poll() is not None

    wait_until(begun, "no row has a checkpoint", look=0.01)
    workers = children(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(started, workers)), "the worker outlives its campaign")
    return bool(list(folder.glob(CHECKPOINT))) and not list(folder.glob("work/*/result.json"))


@pytest.mark.long
def test_a_killed_campaign_goes_on_and_gives_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        campaign_of(folder, ROWS)
    said, _ = command(undisturbed).communicate(timeout=300)
    assert "4 rows to run" in said
    assert len(quality(undisturbed)) == 4
    # 1. Kill the campaign once a first row has a checkpoint; its worker ends too. On a busy machine the row may have
    # ended before the signal comes: then once more.
    for _ in range(10):
        shutil.rmtree(killed / "work", ignore_errors=True)
        shutil.rmtree(killed / "out", ignore_errors=True)
        if kill_in_a_training(killed):
            break
    assert not list(killed.glob("work/*/result.json"))
    assert len(list(killed.glob(CHECKPOINT))) == 1
    # 2. It goes on, with a limit of time, and again without.
    command(killed, "--seconds", "2").communicate(timeout=300)
    said, _ = command(killed).communicate(timeout=300)
    assert quality(killed) == quality(undisturbed)
    assert "0 rows to run" in command(killed).communicate(timeout=300)[0]
    # 3. Compact ranks pair across the two machines, and every result is recorded once.
    ranks = [str(path) for path in sorted((killed / "out/ranks").glob("*.npz"))]
    assert len(ranks) == 4
    assert compare(ranks, samples=20).tables
    for path in ranks:
        with np.load(path) as one, np.load(undisturbed / "out/ranks" / Path(path).name) as other:
            assert all((one[name] == other[name]).all() for name in ("rank", "bucket_rank", "other_rank", "tie"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("")
    home = Results(tmp_path / "home")
    assert "4 runs recorded" in record_all(killed / "out", home)
    assert "0 records added" in record_all(killed / "out", home)
    assert [json.loads(line)["measure"] for line in home.path.read_text().splitlines()].count("cost") == 1


@pytest.mark.long
def test_a_campaign_cut_at_any_second_gives_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    """Cut after ever longer times by a signal that nothing can catch, until nothing is left to run."""
    rows = [*ROWS, entry("intrr", measure="trial", intrr__digit_width=0), entry("rastp+skipgr", rastp__after_layer=1)]
    undisturbed, cut = tmp_path / "undisturbed", tmp_path / "cut"
    for folder in (undisturbed, cut):
        campaign_of(folder, rows)
    said, _ = command(undisturbed).communicate(timeout=300)
    assert "6 rows to run" in said
    seconds, said = 0.5, ""
    while "0 rows to run" not in said:
        seconds = 1.3 * seconds + 0.5
        process = command(cut)
        try:
            said, _ = process.communicate(timeout=seconds)
            assert process.returncode == 0
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
        assert seconds < 300
    assert quality(cut) == quality(undisturbed)
    histories = [
        {
            record["arm"]: record["history"]
            for record in Results(folder / "out").records()
            if record["measure"] == "trial"
        }
        for folder in (cut, undisturbed)
    ]
    names = ("step", "windows", "train_loss", "valid_loss", "recall_at_10")
    kept = [[{name: row[name] for name in names} for row in history["intrr"]] for history in histories]
    assert kept[0] == kept[1]


@pytest.mark.long
def test_every_setting_of_the_campaigns_runs_in_a_tiny_form(tmp_path: Path, root: Path) -> None:
    """Settings that a stage refuses would cost a lent GPU its start."""
    campaign = campaign_of(tmp_path, ROWS)
    small = {**TINY, "backbone.encoder_layers": 4, "quantize.levels": 3, "train.max_windows": 300}
    done: set[str] = set()
    for path in sorted((root / "benchmarks/campaigns").glob("*.yaml")):
        for row in read_rows(path):
            raw = row.params.plain()
            for key, value in small.items():
                section, _, name = key.rpartition(".")
                raw[section][name] = value
            one = replace(row, params=build_params(raw), data="world")
            name = str(campaign.key(one))
            if name in done:
                continue
            done.add(name)
            spec = {"params": raw, "inputs": {kind: str(path) for kind, path in campaign.inputs(one).items()}}
            (tmp_path / name).mkdir()
            (tmp_path / name / "spec.json").write_text(json.dumps({**spec, "trial": row.measure == "trial"}))
            run(tmp_path / name)
            assert read_json(tmp_path / name / "result.json")["history"], row.name
    assert len(done) > 40
