"""A campaign: keys, results that survive a cut, costs of an older engine, and what runs beside what."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from campaign_world import campaign_of, entry
from synthetic_runs import ranks_of

from benchmarks.campaign import Campaign, main, table, trials_line
from benchmarks.campaign_record import merge
from benchmarks.campaign_rows import ROOT, Results, Row, read_rows, state
from pipeline.artifacts import Embeddings
from pipeline.errors import UserError
from pipeline.locks import alone
from pipeline.results.compact_ranks import compact_bytes, read_compact
from pipeline.results.compare import compare, differences
from pipeline.results.runs import Run, read_run

FAKE = """
import json, sys, time
from pathlib import Path
folder = sys.argv[1]
began = time.time()
Path(SPANS + "-" + Path(folder).name).touch()
while len(list(Path(SPANS).parent.glob(Path(SPANS).name + "-*"))) < TOGETHER:
    time.sleep(0.01)
time.sleep(0.1)
figures = {"recall_at_10": 0.5, "train_seconds": 1.0, "windows_per_second": 2.0, "peak_memory_gib": 0.1}
open(folder + "/ranks.npz", "wb").write(b"ranks")
result = {"quality": figures, "cost": figures, "history": [{**figures, "windows": 3}], "model": "m", "hardware": "none"}
if FAILS in open(folder + "/spec.json").read():
    sys.exit("it failed")
json.dump(result, open(folder + "/result.json", "w"))
with open(SPANS, "a") as file:
    file.write(json.dumps([folder.rsplit("-", 1)[1], began, time.time()]) + chr(10))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, ...]]:
    """A worker that takes a tenth of a second and notes when it ran; inputs are not made for it.

    The first ones wait until `together` have begun: one that starts late on a busy machine would run alone.
    """

    def written(fails: str = "nothing", together: int = 1) -> tuple[str, ...]:
        monkeypatch.setattr("benchmarks.campaign.POLL", 0.01)
        monkeypatch.setattr(Campaign, "inputs", lambda *_: {})
        script = tmp_path / "fake.py"
        given = {"SPANS": str(tmp_path / "spans"), "FAILS": fails, "TOGETHER": together}
        script.write_text("\n".join(f"{name} = {value!r}" for name, value in given.items()) + FAKE)
        return ("-S", str(script))

    return written


def spans(folder: Path) -> list[tuple[str, float, float]]:
    return [tuple(json.loads(line)) for line in (folder / "spans").read_text().splitlines()]


def test_the_key_follows_what_shapes_the_result_and_nothing_else(tmp_path: Path) -> None:
    def key(**changes: Any) -> str:
        campaign = campaign_of(tmp_path, [entry(**changes)])
        return str(campaign.key(campaign.rows[0]))

    first = key()
    assert {key(train__threads=2), key(track__experiment="x"), key(skipgr__token_ratio=0.2), key(measure="cost")} == {
        first
    }
    others = {key(seeds=(2,)), key(train__learning_rate=0.01), key(evaluate__beam=30), key(split__max_history=5)}
    assert len(others | {key(arm="skipgr"), key(arm="skipgr", skipgr__token_ratio=0.2), first}) == 7
    vectors = Embeddings.read(tmp_path / "data/world/embeddings").vectors_Id
    Embeddings(vectors + 1, {}).write(tmp_path / "data/world/embeddings")
    assert key() != first


def test_a_value_by_which_a_model_computes_as_before_its_key_was_there_is_no_part_of_the_key(tmp_path: Path) -> None:
    row = campaign_of(tmp_path, [entry("skipgr")]).rows[0]
    assert "skipgr.token_ratio" in row.settings
    assert "skipgr.at_eval" not in row.settings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"presets": ["tigre"]}, "preset 'tigre' is not known"),
        ({"set": {"train.max_window": 3}}, "max_window"),
        ({"set": {"nothing.there": 3}}, "names no section"),
        ({"measure": "speed"}, "expected quality or cost"),
        ({"seed": 3}, "unknown field 'seed'"),
        ({"seeds": 3}, "seeds is 3"),
        ({"set": {1: 2}}, "the key of `set` 1 is no text"),
        ({"presets": [{"tiger": 1}]}, "the preset {'tiger': 1} is no text"),
        ({"presets": [["tiger"]]}, "the preset ['tiger'] is no text"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"seconds": -1}, "seconds is -1"),
        ({"seconds": True}, "seconds is True"),
    ],
)
def test_a_wrong_row_is_refused_by_its_number(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump([entry(), {**entry(), **change}]))
    with pytest.raises(UserError) as refused:
        read_rows(file)
    assert said in str(refused.value)
    assert "row 2" in str(refused.value)


def test_a_line_that_was_cut_costs_its_own_record_alone(tmp_path: Path) -> None:
    """Wherever it is cut, the next record stands on a line of its own."""
    records = [{"key": f"{n:016x}", "measure": "quality", "figures": {"recall_at_10": n / 7}} for n in range(3)]
    whole = Results(tmp_path / "whole")
    for record in records[:2]:
        whole.append(record)
    content = whole.path.read_bytes()
    first = content.index(b"\n") + 1
    edges = {0, 1, 8, first - 2, first - 1, first, first + 1, len(content) - 2, len(content) - 1, len(content)}
    for cut in sorted(edges | set(range(0, len(content), 29))):
        results = Results(tmp_path / "cut")
        results.folder.mkdir(exist_ok=True)
        results.path.write_bytes(content[:cut])
        results.append(records[2])
        survivors = records[: (cut >= first - 1) + (cut >= len(content) - 1)]
        assert results.records() == [*survivors, records[2]]


def test_a_cost_of_an_older_engine_is_stale_and_its_quality_is_not(tmp_path: Path, fake: Any) -> None:
    rows = [entry(), entry(measure="cost")]
    campaign = campaign_of(tmp_path, rows, worker=fake(), engine="old")
    assert campaign.run(campaign.wanted(False), 1, time.monotonic() + 60) == 0
    later = campaign_of(tmp_path, rows, worker=fake(), engine="new")
    assert [word for _, word, _ in later.states()] == ["done", "stale"]
    assert not later.wanted(False)
    assert [row.measure for row in later.wanted(True)] == ["cost"]
    later.run(later.wanted(True), 1, time.monotonic() + 60)
    assert [word for _, word, _ in later.states()] == ["done", "done"]
    engines = [(record["measure"], record["engine"]) for record in later.results.records()]
    assert engines == [("quality", "old"), ("cost", "old"), ("cost", "new")]


def test_a_trial_has_its_validation_and_a_row_for_quality_is_a_trial_too(tmp_path: Path, fake: Any) -> None:
    rows = [entry(), entry(measure="trial"), entry(measure="trial", train__learning_rate=0.002)]
    campaign = campaign_of(tmp_path, rows, worker=fake())
    assert campaign.run(campaign.wanted(False)[:1], 1, time.monotonic() + 60) == 0
    assert [word for _, word, _ in campaign.states()] == ["done", "done", "missing"]
    assert campaign.run(campaign.wanted(False), 1, time.monotonic() + 60) == 0
    assert [word for _, word, _ in campaign.states()] == ["done", "done", "done"]
    tried = campaign.results.records()[-1]
    assert (tried["measure"], len(list((tmp_path / "out/ranks").iterdir()))) == ("trial", 1)
    assert "recall@10 on validation 0.5000" in table(campaign).splitlines()[2]
    # A trial is no result of the test.
    quality = campaign_of(tmp_path, [entry(train__learning_rate=0.002)])
    assert [word for _, word, _ in quality.states()] == ["missing"]


def test_an_unequal_number_of_trials_is_told(tmp_path: Path) -> None:
    rows = [entry(measure="trial"), entry("skipgr", measure="trial"), entry("intrr")]
    assert trials_line(campaign_of(tmp_path, rows).rows).endswith("by arm: full 1, skipgr 1")
    rows.append(entry("skipgr", measure="trial", skipgr__token_ratio=0.2))
    assert trials_line(campaign_of(tmp_path, rows).rows).endswith("by arm, unequal: full 1, skipgr 2")
    assert trials_line(campaign_of(tmp_path, rows[2:3]).rows) == ""


def test_the_arms_of_the_campaigns_have_equally_many_trials_and_begin_with_their_row(root: Path) -> None:
    folder = root / "benchmarks/campaigns"
    tried = read_rows(folder / "4-trials.yaml")
    assert "unequal" not in trials_line(tried)
    first = {row.arm: row for row in reversed(read_rows(folder / "1-strategies.yaml")) if row.group == "beauty-fast"}
    begun: dict[str, Row] = {}
    for row in tried:
        begun.setdefault(row.arm, row)
    assert set(begun) == {"full", "skipgr", "rastp", "intrr"}
    assert all(row.settings == first[arm].settings for arm, row in begun.items())


def test_rows_for_quality_share_the_machine_and_a_row_for_cost_has_it_alone(tmp_path: Path, fake: Any) -> None:
    rows = [entry(seeds=(1, 2, 3)), entry(seeds=(4,), measure="cost"), entry(seeds=(5, 6))]
    campaign = campaign_of(tmp_path, rows, worker=fake(together=2))
    campaign.run(campaign.wanted(False), 2, time.monotonic() + 60)
    ran = spans(tmp_path)
    alongside = [[b < end and e > begin for _, b, e in ran].count(True) for _, begin, end in ran]
    assert len(ran) == 6
    assert max(sum(b <= t < e for _, b, e in ran) for _, t, _ in ran) == 2
    assert [many for (kind, *_), many in zip(ran, alongside, strict=True) if kind == "cost"] == [1]
    # A run that had the machine alone brings its quality too.
    assert sorted(r["seed"] for r in campaign.results.records() if r["measure"] == "quality") == [1, 2, 3, 4, 5, 6]


def test_a_cost_before_its_quality_brings_both_and_nothing_runs_twice(tmp_path: Path, fake: Any) -> None:
    campaign = campaign_of(tmp_path, [entry(measure="cost"), entry()], worker=fake())
    assert campaign.run(campaign.wanted(False), 1, time.monotonic() + 60) == 0
    assert [kind for kind, *_ in spans(tmp_path)] == ["cost"]
    assert [record["measure"] for record in campaign.results.records()] == ["quality", "cost"]


def test_a_second_campaign_in_the_same_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign_of(tmp_path, [entry()])
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump([entry()]))
    places = [f"--{name}={tmp_path / name}" for name in ("data", "results", "work")]
    with alone(tmp_path / "work/campaign.lock", None):
        assert main([str(file), *places, "--commit", "c"]) == 1
    assert "runs a campaign in" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_after_the_time_limit_nothing_starts_and_what_runs_ends(
    tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the campaign passes the limit once the first row is at work, however fast the machine is."""

    def monotonic() -> float:
        return 4.5 if list(tmp_path.glob("spans-*")) else 3.5

    campaign = campaign_of(tmp_path, [entry(seeds=(1, 2, 3, 4))], worker=fake())
    monkeypatch.setattr("benchmarks.campaign.time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    campaign.run(campaign.wanted(False), 1, 4)
    assert [record["seed"] for record in campaign.results.records()] == [1]
    assert [row.seed for row in campaign.wanted(False)] == [2, 3, 4]


def test_a_row_that_fails_is_missing_and_the_others_run(tmp_path: Path, fake: Any) -> None:
    campaign = campaign_of(tmp_path, [entry(seeds=(1, 2, 3))], worker=fake('"seed": 2'))
    assert campaign.run(campaign.wanted(False), 3, time.monotonic() + 60) == 1
    assert [(row.seed, word) for row, word, _ in campaign.states()] == [(1, "done"), (2, "missing"), (3, "done")]


def test_a_result_that_was_left_behind_is_taken_and_not_made_again(tmp_path: Path, fake: Any) -> None:
    """The campaign was killed after the row had ended, and before it took the result."""
    campaign = campaign_of(tmp_path, [entry(), entry(measure="cost")], worker=fake())
    for row in campaign.rows:
        campaign.start(row, 1).process.wait()
    before = spans(tmp_path)
    again = campaign_of(tmp_path, [entry(), entry(measure="cost")], worker=("-m", "benchmarks.campaign_worker"))
    assert all((campaign.start(row, 1).folder / "result.json").exists() for row in again.rows)
    assert len(before) == 2


def test_results_of_another_machine_count_and_are_merged_once(tmp_path: Path, fake: Any) -> None:
    campaign = campaign_of(tmp_path, [entry(seeds=(1, 2))], worker=fake())
    campaign.run(campaign.wanted(False)[:1], 1, time.monotonic() + 60)
    here = Results(tmp_path / "here")
    elsewhere = campaign_of(tmp_path, [entry(seeds=(1, 2))], results=here, known=[campaign.results])
    assert [row.seed for row in elsewhere.wanted(False)] == [2]
    assert [merge(campaign.results, here), merge(campaign.results, here)] == [1, 0]
    assert here.records() == campaign.results.records()
    assert here.ranks(here.records()[0]["key"]).read_bytes() == b"ranks"


def test_without_the_data_rows_are_found_by_their_parameters(tmp_path: Path, fake: Any) -> None:
    campaign = campaign_of(tmp_path, [entry(seeds=(1, 2))], worker=fake())
    campaign.run(campaign.wanted(False)[:1], 1, time.monotonic() + 60)
    records = campaign.results.records()
    assert [state(row, records, None)[0] for row in campaign.rows] == ["done", "missing"]


def test_the_command_says_what_is_missing_and_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign_of(tmp_path, [entry(seeds=(1,)), {**entry("skipgr"), "data": "elsewhere"}])
    given = [str(tmp_path / "campaign.yaml"), "--data", str(tmp_path / "data"), "--results", str(tmp_path / "out")]
    assert main([*given, "--list"]) == 0
    said = capsys.readouterr().out
    assert "full, seed 1, quality: missing" in said
    assert "missing, and its data too" in said
    assert "2 of 2 rows missing, about 0.00 hours" in said
    assert main([str(tmp_path / "none.yaml"), "--list"]) == 1
    assert "none.yaml" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- compact ranks


def test_compact_ranks_compare_as_the_ranks_that_they_were_made_from(tmp_path: Path) -> None:
    """Against ranks.parquet, and mixed with it: by users, targets and ties, without their ids."""
    rng = np.random.default_rng(0)
    users = 3000
    runs: dict[str, tuple[str, str]] = {}
    for name in ("full", "rastp"):
        ranks = ranks_of(rng.integers(0, 40, users), strategy=name, seed=1)
        (tmp_path / name).mkdir()
        ranks.write(tmp_path / name / "ranks.parquet")
        (tmp_path / f"{name}.npz").write_bytes(compact_bytes(ranks, {"seed": 1, "strategy": name}))
        runs[name] = str(tmp_path / name), str(tmp_path / f"{name}.npz")
        assert (tmp_path / f"{name}.npz").stat().st_size < users * 4
    expected = _rows([runs["full"][0], runs["rastp"][0]])
    assert len(expected) > 5
    for arguments in ([runs["full"][1], runs["rastp"][1]], [runs["full"][0], runs["rastp"][1]]):
        assert _rows(arguments) == expected


def _rows(arguments: list[str]) -> list[Any]:
    (table,) = compare(arguments, samples=50).tables
    return [difference for comparison in table.comparisons for difference in comparison.differences]


def test_compact_ranks_of_other_users_are_not_paired(tmp_path: Path) -> None:
    rank = np.arange(50) % 12
    one, other = ranks_of(rank), ranks_of(rank, strategy="rastp")
    other.users["item_id"] += 1
    for name, ranks in (("one", one), ("other", other)):
        (tmp_path / f"{name}.npz").write_bytes(compact_bytes(ranks, {}))
    tables = compare([str(tmp_path / "one.npz"), str(tmp_path / "other.npz")], samples=50).tables
    assert [len(table.comparisons) for table in tables] == [1, 1]


def test_compact_ranks_hold_no_id_and_equal_ranks_give_equal_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ranks = ranks_of(rng.integers(0, 400, 200))
    path = tmp_path / "ranks.npz"
    path.write_bytes(compact_bytes(ranks, {"seed": 3}))
    assert compact_bytes(ranks, {"seed": 3}) == path.read_bytes()
    with np.load(path) as file:
        assert set(file) == {"rank", "bucket_rank", "other_rank", "tie", "about"}
        assert {file[name].dtype for name in file} == {np.dtype(np.uint8)}
    back, settings = read_compact(path)
    assert settings == {"seed": 3}
    assert back.origin == ranks.origin
    assert back.targets == ranks.targets
    assert (back.users["rank"] == np.minimum(ranks.users["rank"], 255)).all()
    assert (back.users["tie"] == ranks.users["tie"]).all()
    assert (back.users["item_id"] == -1).all()


@pytest.mark.parametrize("damage", ["cut", "text", "gone", "other"])
def test_a_damaged_file_of_compact_ranks_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "ranks.npz"
    content = compact_bytes(ranks_of(np.arange(30)), {})
    if damage == "other":
        np.savez_compressed(path, x=np.arange(3))
    elif damage != "gone":
        path.write_bytes(content[:200] if damage == "cut" else b"ranks")
    with pytest.raises(UserError, match="compact ranks"):
        read_compact(path)


def test_two_seeds_of_compact_ranks_pair_seed_by_seed(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    arms = []
    for name in ("full", "skipgr"):
        runs = []
        for seed in (1, 2):
            ranks = ranks_of(rng.integers(0, 15, 400), strategy=name, seed=seed)
            path = tmp_path / f"{name}-{seed}.npz"
            path.write_bytes(compact_bytes(ranks, {}))
            runs.append((Run("parquet", ranks), read_run(str(path))))
        arms.append(runs)
    from pipeline.results.arms import Arm

    sides = [[Arm("x", tuple(run[which] for run in runs)) for runs in arms] for which in (0, 1)]
    first, second = (differences(*side, samples=50, seed=0) for side in sides)
    assert first == second
    assert replace(first[0]) == second[0]


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks/campaigns").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_campaign_can_be_read_and_lists_no_row_twice(file: Path) -> None:
    rows = read_rows(file)
    assert len(rows) >= 6
    assert len({(row.arm, json.dumps(row.settings), row.data, row.measure) for row in rows}) == len(rows)
