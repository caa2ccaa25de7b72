"""`tune`: what a space may say, the same trials at each call, and a search that goes on where it was cut."""

import hashlib
import json
import math
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import patience
import pytest
import yaml

from pipeline.artifacts import Splits
from pipeline.config import load_params
from pipeline.errors import UserError
from pipeline.presets import tuning
from pipeline.presets.apply import apply_preset
from pipeline.presets.tuned import trial_table, write_preset
from pipeline.presets.tuning import TuningSearch, TuningTrial, run_search, words_of
from pipeline.presets.tuning_data import check_data
from pipeline.presets.tuning_space import FIXED, Interval, Space, check_keys, read_space, with_changes
from pipeline.presets.tuning_trial import RESULT, SPEC, best_row

KEYS = {
    "train.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    "backbone.dropout": [0.0, 0.1, 0.2],
    "train.warmup_steps": {"low": 3, "high": 6, "integer": True},
}
# A trial whose value is its rate; it writes down that it ran, and sleeps where the file SLOW is there.
WORKER = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1]); spec = json.loads((folder / "spec.json").read_text())
(folder.parent / "runs.txt").open("a").write(folder.name + "\\n")
while (folder.parent / "SLOW").exists(): time.sleep(0.05)
rate = spec["params"]["train"]["learning_rate"]
print("step 7 of 9", flush=True); time.sleep(0.5)
if rate > 0.05: sys.exit("error: the loss is not finite")
row = {"step": 1, "windows": 10, "recall_at_10": rate}
(folder / "result.json").write_text(json.dumps({"value": rate, "windows": 10, "seconds": 1.0, "history": [row]}))
"""


def written(folder: Path, **fields: Any) -> Path:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


class TestSpace:
    def test_draws_lie_within_their_bounds_and_fill_them(self) -> None:
        keys: dict[str, list[Any] | Interval] = {
            "train.learning_rate": Interval(0.001, 0.1, log=True),
            "backbone.dropout": [0.0, 0.1, 0.2],
            "train.warmup_steps": Interval(3, 6, integer=True),
        }
        drawn = Space("random", 1000, 5, keys).proposals()[1:]
        rates = sorted(changes["train.learning_rate"] for changes in drawn)
        assert 0.001 <= rates[0] <= rates[-1] <= 0.1
        # Uniform in the logarithm: the median is the geometric mean, and a tenth lies below the first tenth of it.
        assert abs(math.log10(rates[len(rates) // 2]) + 2) < 0.1
        assert abs(sum(rate < 10**-2.8 for rate in rates) / len(rates) - 0.1) < 0.04
        assert all(float(f"{rate:.3g}") == rate for rate in rates)
        for key, values in (("backbone.dropout", (0.0, 0.1, 0.2)), ("train.warmup_steps", (3, 4, 5, 6))):
            counts = Counter(changes[key] for changes in drawn)
            assert set(counts) == set(values)
            assert min(counts.values()) > 0.7 * len(drawn) / len(values)

    def test_whole_numbers_by_the_logarithm_reach_both_bounds(self) -> None:
        generator = random.Random(5)
        drawn = [Interval(1, 3, log=True, integer=True).draw(generator) for _ in range(2000)]
        # 1 to 2, 2 to 3 and 3 to 4 are that wide in the logarithm of 1 to 4.
        for value in (1, 2, 3):
            assert abs(drawn.count(value) / len(drawn) - math.log((value + 1) / value) / math.log(4)) < 0.05

    def test_more_trials_and_more_keys_leave_the_earlier_draws_as_they_were(self, tmp_path: Path) -> None:
        few = read_space(written(tmp_path, trials=5, seed=2, keys=KEYS)).proposals()
        many = read_space(written(tmp_path, trials=20, seed=2, keys=KEYS)).proposals()
        assert few[0] == {}
        assert many[: len(few)] == few
        other = read_space(written(tmp_path, trials=5, seed=2, keys={**KEYS, "train.ema": [0.0, 0.9]})).proposals()
        assert [{key: changes[key] for key in KEYS} for changes in other[1:]] == few[1:]
        assert read_space(written(tmp_path, trials=5, seed=3, keys=KEYS)).proposals() != few

    def test_a_grid_is_every_combination_after_params_yaml_itself(self, tmp_path: Path) -> None:
        lists: dict[str, list[Any]] = {
            "backbone.dropout": [0.0, 0.1],
            "skipgr.level_ratios": [[0.0, 0.0, 0.3], [0.1, 0.1, 0.1], []],
        }
        found = read_space(written(tmp_path, method="grid", keys=lists)).proposals()
        assert found[0] == {}
        assert len(found) == 7
        assert {(changes["backbone.dropout"], str(changes["skipgr.level_ratios"])) for changes in found[1:]} == {
            (dropout, str(ratios)) for dropout in (0.0, 0.1) for ratios in lists["skipgr.level_ratios"]
        }

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"trials": 3}, "no mapping `keys`"),
            ({"keys": KEYS}, "no field `trials`"),
            ({"trials": 1, "keys": KEYS}, "trials is 1"),
            ({"trials": True, "keys": KEYS}, "trials is True"),
            ({"trials": 3, "keys": KEYS, "sead": 1}, "unknown field 'sead', did you mean 'seed'"),
            ({"trials": 3, "keys": KEYS, "seed": "x"}, "seed is 'x'"),
            ({"trials": 3, "method": "bayes", "keys": KEYS}, "method is 'bayes'"),
            ({"method": "grid", "keys": KEYS}, "train.learning_rate is an interval"),
            ({"trials": 3, "keys": {"train.ema": []}}, "neither a list of values nor"),
            ({"trials": 3, "keys": {"train.ema": 0.5}}, "neither a list of values nor"),
            ({"trials": 3, "keys": {"train.ema": {"low": 0, "lower": 1}}}, "neither a list of values nor"),
            ({"trials": 3, "keys": {"train.ema": {"low": 1, "high": 1}}}, "goes from 1 to 1"),
            ({"trials": 3, "keys": {"train.ema": {"low": 0, "high": 1, "log": True}}}, "goes from 0 to 1"),
            ({"trials": 3, "keys": {"train.ema": {"low": math.nan, "high": 1}}}, "expected two numbers"),
            ({"trials": 3, "keys": {"train.ema": {"low": False, "high": 1}}}, "goes from False to 1"),
            ({"trials": 3, "keys": {"train.ema": {"low": 0, "high": True}}}, "goes from 0 to True"),
            ({"trials": 3, "keys": {"train.ema": {"low": 0.5, "high": 3, "integer": True}}}, "goes from 0.5"),
        ],
    )
    def test_what_it_cannot_mean_is_refused_with_its_name(
        self, fields: dict[str, Any], says: str, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=says.replace("`", ".")):
            read_space(written(tmp_path, **fields))

    @pytest.mark.parametrize(
        "key", [*sorted(FIXED), "seed", "evaluate.beam", "split.max_history", "dataset", "track.live"]
    )
    def test_a_key_that_measures_or_shapes_other_stages_is_no_part_of_it(self, key: str, project: Path) -> None:
        with pytest.raises(UserError, match=f"{key} cannot be tuned"):
            check_keys(Space("random", 3, 1, {key: [1, 2]}), load_params(), project / "space.yaml")

    def test_an_unknown_key_or_a_refused_value_is_told_before_a_trial_starts(self, project: Path) -> None:
        with pytest.raises(UserError, match=r"unknown key 'train\.lr'") as raised:
            check_keys(Space("random", 3, 1, {"train.lr": [1]}), load_params(), project / "space.yaml")
        assert "train.learning_rate" in raised.value.what
        assert not [name for name in ("dense.", "ingest.", "backbone.", *FIXED) if name in raised.value.what]
        with pytest.raises(UserError, match=r"unknown key 'backbon\.dropout', did you mean 'backbone'"):
            check_keys(Space("random", 3, 1, {"backbon.dropout": [1]}), load_params(), project / "space.yaml")
        with pytest.raises(UserError, match=r"trial 4 \(train.learning_rate=-1\)"):
            with_changes(load_params(), {"train.learning_rate": -1}, "trial 4")


@pytest.mark.usefixtures("project")
def test_settings_that_come_twice_are_one_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params()
    monkeypatch.setattr(Splits, "read", lambda *_: SimpleNamespace(summary={"max_history": 20}))
    monkeypatch.setattr(tuning, "fingerprint", lambda *parts: hashlib.sha256(repr(parts).encode()).hexdigest())
    rate = params.train.learning_rate
    space = Space("grid", 4, 1, {"train.learning_rate": [0.01, rate, 1e-2], "strategy": ["full"]})
    search = tuning.plan(space, params, tmp_path)
    assert [(trial.number, trial.params.train.learning_rate) for trial in search.trials] == [(0, rate), (1, 0.01)]
    assert len({trial.folder for trial in search.trials}) == 2
    # So are settings of a strategy that a trial does not have, and of a tokenizer that it does not use.
    grids: list[tuple[dict[str, list[Any] | Interval], int]] = [
        ({"strategy": ["full", "rastp"], "rastp.keep": [0.4, 0.5]}, 3),
        ({"backbone.name": ["t5", "gr"], "quantize.codes": [32, 48]}, 4),
    ]
    for keys, different in grids:
        assert len(tuning.plan(Space("grid", 5, 1, keys), params, tmp_path).trials) == different
    for key, missing in (("rastp.keep", r"strategy: \[rastp\]"), ("skipgr.token_ratio", r"strategy: \[skipgr\]")):
        with pytest.raises(UserError, match=f"{key} changes no trial") as raised:
            tuning.plan(Space("grid", 2, 1, {key: [0.3]}), params, tmp_path)
        assert re.search(missing, raised.value.fix)


MADE_WITH: dict[str, list[tuple[str, str, Any]]] = {
    "data/interactions": [("ingest", "dataset", "custom"), ("ingest", "ingest.k_core", 3)],
    "data/embeddings": [("embed", "embed.dimensions", 64), ("embed", "embed.template", ["{title}"])],
    "data/splits": [("split", "split.ties", "shuffled"), ("split", "split.valid_from", "2024-09-20")],
}


def lock_of(**changes: Any) -> dict[str, Any]:
    """Return what dvc.lock holds after a run with params.yaml and these changes of stage.key."""
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["train"]["learning_rate"] = 0.5  # no trial reads what was trained
    sections = {"ingest": ("dataset", "ingest"), "embed": ("embed",), "split": ("seed", "split"), "train": ("train",)}
    stages = {stage: {"params": {"params.yaml": {k: raw[k] for k in names}}} for stage, names in sections.items()}
    for name, value in changes.items():
        stage, _, key = name.partition("/")
        section, _, leaf = key.rpartition(".")
        recorded = stages[stage]["params"]["params.yaml"]
        (recorded[section] if section else recorded)[leaf or key] = value
    return {"stages": stages}


@pytest.mark.usefixtures("project")
class TestData:
    """Trials read the data as it is, so it has to be that of params.yaml."""

    @pytest.mark.parametrize(("folder", "made"), [(name, made) for name, all_ in MADE_WITH.items() for made in all_])
    def test_data_of_another_setting_is_refused_with_its_name(self, folder: str, made: tuple[str, str, Any]) -> None:
        stage, key, value = made
        splits: Any = SimpleNamespace(summary={"max_history": 20})
        Path("dvc.lock").write_text(yaml.safe_dump(lock_of(**{f"{stage}/{key}": value})))
        with pytest.raises(UserError, match=f"{folder} was made with {key} ") as raised:
            check_data(load_params(), splits)
        assert raised.value.fix == "dvc repro split embed, then run the same command again"

    def test_the_seed_counts_where_it_decides_on_ties(self) -> None:
        splits: Any = SimpleNamespace(summary={})
        Path("dvc.lock").write_text(yaml.safe_dump(lock_of(**{"split/seed": 7})))
        check_data(load_params(), splits)
        apply_preset("demo", ["split.ties=shuffled"])
        Path("dvc.lock").write_text(yaml.safe_dump(lock_of(**{"split/seed": 7})))
        with pytest.raises(UserError, match=r"made with seed 7, and params\.yaml says 42"):
            check_data(load_params(), splits)

    def test_a_split_by_hand_is_known_by_its_summary(self) -> None:
        for key, value in (("protocol", "temporal"), ("ties", "shuffled"), ("max_history", 5)):
            splits: Any = SimpleNamespace(summary={key: value})
            with pytest.raises(UserError, match=f"data/splits was made with split.{key} "):
                check_data(load_params(), splits)

    def test_another_writing_of_a_number_or_a_damaged_lock_refuses_nothing(self) -> None:
        splits: Any = SimpleNamespace(summary={"max_history": 20})
        wrong = ["", "[]", "stages: 3", "stages: {split: 1}", yaml.safe_dump(lock_of(**{"ingest/ingest.path": {}}))]
        for text in [yaml.safe_dump(lock_of(**{"ingest/ingest.max_line_bytes": 4194304.0})), *wrong[:-1]]:
            Path("dvc.lock").write_text(text)
            check_data(load_params(), splits)
        Path("dvc.lock").write_text(wrong[-1])
        with pytest.raises(UserError, match=r"data/interactions was made with ingest\.path \{\}"):
            check_data(load_params(), splits)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"backbone.name": ["sasrec"]}, "backbone.name"),
        ({"quantize.codes": [32]}, "quantize.codes"),
        ({"backbone.dropout": [0.2], "quantize.interactions": [0.5]}, "quantize.interactions"),
        ({"backbone.name": ["decoder"], "strategy": ["skipgr"], "train.ema": [0.5]}, None),
    ],
)
def test_losses_that_measure_different_things_are_not_ranked(
    keys: dict[str, list[Any] | Interval], named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Splits, "read", lambda *_: SimpleNamespace(summary={}))
    monkeypatch.setattr(tuning, "fingerprint", lambda *parts: hashlib.sha256(repr(parts).encode()).hexdigest())
    params = load_params()
    by_loss = replace(params, train=replace(params.train, select="loss"))
    assert len(tuning.plan(Space("grid", 2, 1, keys), params, tmp_path).trials) == 2
    if named is None:
        assert len(tuning.plan(Space("grid", 2, 1, keys), by_loss, tmp_path).trials) == 2
        return
    with pytest.raises(UserError, match=r"trial 1 .* cannot be ranked") as raised:
        tuning.plan(Space("grid", 2, 1, keys), by_loss, tmp_path)
    assert f"another {named} the loss" in raised.value.why


def search_in(folder: Path, rates: list[float]) -> TuningSearch:
    params = load_params()
    trials = []
    for number, rate in enumerate(rates):
        changes = {"train.learning_rate": rate} if number else {}
        own = with_changes(params, {"train.learning_rate": rate}, "trial")
        key = f"k{number}"
        trials.append(
            TuningTrial(number=number, changes=changes, params=own, key=key, folder=folder / key, sids=folder / "sids")
        )
    return TuningSearch(trials, "recall_at_10")


@pytest.mark.usefixtures("project")
class TestSearch:
    @pytest.fixture
    def worker(self, tmp_path: Path) -> tuple[str, str]:
        (tmp_path / "worker.py").write_text(WORKER)
        return ("-u", str(tmp_path / "worker.py"))

    def test_the_best_by_validation_comes_first_and_a_failure_stops_nothing(
        self,
        tmp_path: Path,
        worker: tuple[str, str],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        rates = [0.01, 0.03, 0.09, 0.02, 0.03]
        search = search_in(tmp_path / "tune", rates)
        monkeypatch.setattr(tuning, "EVERY", 0.0)
        run_search(search, 3, worker)
        assert [trial.number for trial, _ in search.finished()] == [1, 4, 3, 0]
        assert search.failed == {2: "the loss is not finite"}
        said = capsys.readouterr()
        assert "trial 2 failed: the loss is not finite" in said.err
        assert "tune: trial 1: step 7 of 9\n" in said.out, "nobody waits without a word"
        assert "failed: the loss is not finite: -S train.learning_rate=0.09" in trial_table(search)
        # The same call again runs the failed one alone.
        run_search(replace(search, failed={}), 3, worker)
        assert Counter((tmp_path / "tune/runs.txt").read_text().split()) == {
            "k0": 1,
            "k1": 1,
            "k2": 2,
            "k3": 1,
            "k4": 1,
        }

    def test_a_search_that_was_killed_goes_on_where_it_was(
        self, project: Path, tmp_path: Path, worker: tuple[str, str]
    ) -> None:
        folder = tmp_path / "tune"
        search = search_in(folder, [0.01, 0.02, 0.03])
        run_search(replace(search, trials=search.trials[:1]), 1, worker)
        (folder / "SLOW").touch()
        code = f"""
import sys; sys.path[:0] = {[str(Path(file).parent) for file in (__file__, patience.__file__)]!r}
from pathlib import Path
from test_tuning import search_in
from pipeline.presets.tuning import run_search
run_search(search_in(Path({str(folder)!r}), [0.01, 0.02, 0.03]), 2, {worker!r})
"""
        process = subprocess.Popen([sys.executable, "-c", code], cwd=project, stdout=subprocess.DEVNULL)
        specs = [folder / key / SPEC for key in ("k1", "k2")]
        try:
            patience.wait_until(lambda: all(spec.exists() for spec in specs), "no two trials have begun", alive=process)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            (folder / "SLOW").unlink()  # else the trials would wait for ever
        run_search(search, 2, worker)
        assert [trial.number for trial, _ in search.finished()] == [2, 1, 0]
        assert Counter((folder / "runs.txt").read_text().split())["k0"] == 1

    def test_the_preset_brings_the_best_settings_and_leaves_fractions_as_they_are(
        self, project: Path, tmp_path: Path, worker: tuple[str, str]
    ) -> None:
        apply_preset("demo", ["rastp.keep=1/3", "backbone.dropout=0.3"])
        search = search_in(tmp_path / "tune", [0.01, 0.03, 0.02])
        run_search(search, 3, worker)
        before = yaml.safe_load(Path("params.yaml").read_text())
        best, result = search.finished()[0]
        write_preset(project / "presets/mine.yaml", best, result, search, tmp_path / "space.yaml")
        apply_preset("tiger", [])
        apply_preset("demo", [])
        apply_preset("mine", [])
        before["train"]["learning_rate"] = 0.03
        assert yaml.safe_load(Path("params.yaml").read_text()) == before
        assert "validation" in (project / "presets/mine.yaml").read_text()
        with pytest.raises(UserError, match="was not written by tune"):
            write_preset(project / "presets/tiger.yaml", best, result, search, tmp_path / "space.yaml")


def test_the_best_validation_is_the_one_that_training_saves() -> None:
    history = [
        {"step": 1.0, "valid_loss": 3.0, "recall_at_10": 0.1, "ndcg_at_5": 0.2},
        {"step": 2.0, "valid_loss": 2.0, "recall_at_10": 0.3, "ndcg_at_5": 0.1},
        {"step": 3.0, "valid_loss": 2.5, "recall_at_10": 0.3, "ndcg_at_5": 0.3},
    ]
    best = {select: best_row(history, select)["step"] for select in ("loss", "recall_at_10", "ndcg_at_5")}
    assert best == {"loss": 2.0, "recall_at_10": 2.0, "ndcg_at_5": 3.0}


@pytest.mark.usefixtures("project")
def test_of_losses_the_smallest_is_the_best(tmp_path: Path) -> None:
    search = search_in(tmp_path, [0.01, 0.02, 0.03])
    for key, value in (("k0", 5.0), ("k1", 3.0), ("k2", 4.0)):
        (tmp_path / key).mkdir()
        (tmp_path / key / RESULT).write_text(json.dumps({"value": value}))
    order = [trial.number for trial, _ in replace(search, select="loss").finished()]
    assert order == [1, 2, 0]


def test_words_are_those_of_dvc() -> None:
    changes = {"train.learning_rate": 0.002, "strategy": "rastp+skipgr", "skipgr.level_ratios": [0.0, 0.0, 0.3]}
    assert words_of(changes) == (
        "-S train.learning_rate=0.002 -S strategy=rastp+skipgr -S skipgr.level_ratios='[0.0, 0.0, 0.3]'"
    )


@pytest.mark.usefixtures("project")
def test_a_result_is_the_only_thing_that_makes_a_trial_finished(tmp_path: Path) -> None:
    search = search_in(tmp_path, [0.01, 0.02])
    (tmp_path / "k0").mkdir()
    (tmp_path / "k0" / SPEC).write_text("{}")
    assert search.finished() == []
    (tmp_path / "k1").mkdir()
    (tmp_path / "k1" / RESULT).write_text(json.dumps({"value": 0.5}))
    assert [trial.number for trial, _ in search.finished()] == [1]
