"""The evaluate stage: what it writes, that the numbers agree with each other, and what it refuses."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import yaml
from evaluated_world import TIMINGS, USERS, World, write_generator
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import Splits, read_json, write_json
from pipeline.errors import UserError
from pipeline.evaluate.stage import is_repeat, run
from pipeline.manifest import CHECKSUM, FILES, sealed, unsealed
from pipeline.metric_names import HEADLINES, MEASURED, METRICS
from pipeline.metrics import summarise
from pipeline.results.ranks import Ranks, check_reports

if TYPE_CHECKING:
    from pipeline.decoding.ranking import DecodingMethod

REQUIRED = {
    *METRICS,
    "invalid_rate",
    "users",
    *TIMINGS,
    "bucket_recall_at_10",
    "noties_recall_at_10",
    "popularity_recall_at_10",
    "popularity_ndcg_at_10",
    "cooccurrence_recall_at_10",
    "cooccurrence_ndcg_at_10",
    "recall_at_10_low",
    "recall_at_10_high",
    "tie_share",
}


def files(world: World) -> dict[str, bytes]:
    """Every file of reports/; of those with measurements, what is none."""
    found = {path.name: path.read_bytes() for path in world.paths["reports"].iterdir()}
    if "details.json" in found:
        details = json.loads(found["details.json"])
        left_out = MEASURED | {FILES, CHECKSUM}
        found["details.json"] = json.dumps({k: v for k, v in details.items() if k not in left_out}).encode()
    return found


def test_metrics_are_flat_numbers_and_hold_every_required_key(world: World) -> None:
    metrics = run(world.params, **world.inputs)
    headlines = read_json(world.paths["reports"] / "metrics.json")
    path = world.paths["reports"] / "details.json"
    details = unsealed(path, read_json(path), "evaluate")
    assert metrics == headlines | details
    assert headlines.keys().isdisjoint(details), "nothing stands twice"
    assert set(headlines) <= set(HEADLINES)
    assert metrics.keys() >= REQUIRED
    assert all(type(value) in (int, float) for value in metrics.values())
    assert {key: metrics[key] for key in TIMINGS} == TIMINGS
    took = {"evaluate_seconds", "users_per_second", "fused_seconds"}
    assert metrics.keys() & MEASURED == (TIMINGS.keys() & MEASURED) | took


@pytest.mark.slow
def test_two_processes_under_torchrun_share_the_users_and_write_what_one_writes(world: World, root: Path) -> None:
    (world.root / "params.yaml").write_text(yaml.safe_dump(world.params.plain()))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "pipeline",
        "evaluate",
    ]
    done = subprocess.run(
        command,
        cwd=world.root,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=180,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    together = files(world)
    run(world.params, **world.inputs)
    alone = files(world)
    measured, again = (json.loads(found.pop("details.json")) for found in (together, alone))
    assert {key: (measured[key], again.get(key)) for key in measured if measured[key] != again.get(key)} == {}
    assert together == alone
    assert done.stdout.count("co-occurrence") == 2  # only the first process prints its table


def test_every_metric_can_be_recomputed_from_the_ranks(world: World) -> None:
    metrics = run(world.params, **world.inputs)
    users = Ranks.read(world.paths["reports"] / "ranks.parquet").users
    assert users["user_id"].tolist() == list(range(USERS))
    apart = users[~users["tie"]]
    assert 0 < len(apart) < USERS
    for prefix, part in (("", users), ("noties_", apart)):
        for name, value in summarise(part["rank"].to_numpy()).items():
            assert metrics[prefix + name] == value
        for baseline in ("popularity", "cooccurrence"):
            expected = summarise(part[f"{baseline}_rank"].to_numpy())["recall_at_10"]
            assert metrics[f"{prefix}{baseline}_recall_at_10"] == expected
    assert metrics["tie_share"] == pytest.approx(1 - len(apart) / USERS)
    assert metrics["recall_at_10_low"] <= metrics["recall_at_10"] <= metrics["recall_at_10_high"]


def test_the_rows_say_what_each_user_had(world: World) -> None:
    run(world.params, **world.inputs)
    users, splits = Ranks.read(world.paths["reports"] / "ranks.parquet").users, world.splits
    training = [int(i) for u in range(USERS) for i in splits.items_N[splits.offsets[u] : splits.train_end[u]]]
    row: Any
    for row in users.itertuples():
        sequence = splits.items_N[splits.offsets[row.user_id] : splits.offsets[row.user_id + 1]].tolist()
        times = splits.timestamps_N[splits.offsets[row.user_id] : splits.offsets[row.user_id + 1]].tolist()
        assert row.item_id == sequence[-1]
        assert row.history_length == min(len(sequence) - 1, splits.max_history)
        assert row.target_popularity == training.count(sequence[-1])
        assert row.tie == (times[-1] in times[:-1])


def test_breakdowns_divide_all_users_and_average_to_the_whole(world: World) -> None:
    metrics = run(world.params, **world.inputs)
    for name in ("by_history.csv", "by_popularity.csv"):
        bins = pd.read_csv(world.paths["reports"] / name)
        assert bins["users"].sum() == USERS
        for metric in ("recall_at_10", "ndcg_at_10", "cooccurrence_recall_at_10", "popularity_recall_at_10"):
            assert np.average(bins[metric], weights=bins["users"]) == pytest.approx(metrics[metric])


def test_bins_sorted_as_text_are_in_the_order_of_the_numbers(world: World) -> None:
    run(world.params, **world.inputs)
    names = pd.read_csv(world.paths["reports"] / "by_popularity.csv")["bin"].tolist()
    assert names == sorted(names)
    assert [int(name.split("-")[0]) for name in names] == sorted(int(name.split("-")[0]) for name in names)


def test_a_second_run_gives_the_same_bytes(world: World) -> None:
    run(world.params, **world.inputs)
    first = files(world)
    run(world.params, **world.inputs)
    assert files(world) == first


def test_beam_decoding_and_filter_are_stated_in_the_table_and_in_the_ranks(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(world.params.evaluate, decoding="unconstrained", filter_seen=True)
    metrics = run(replace(world.params, evaluate=config), **world.inputs)
    printed = capsys.readouterr().out
    assert "full, seen dropped: beam 10, unconstrained" in printed
    assert "full, seen included" in printed
    assert "co-occurrence" in printed
    assert f"no tie: {metrics['noties_users']} users" in printed
    origin = Ranks.read(world.paths["reports"] / "ranks.parquet").origin
    assert (origin.beam, origin.decoding, origin.filter_seen) == (10, "unconstrained", True)
    _, targets = world.splits.targets("test")
    repeats = is_repeat(world.splits, targets)
    said = f"{repeats.mean():.1%} of the test targets are repeats of an item of their history"
    assert (said in printed) == repeats.any()


def test_both_rules_for_seen_items_stand_in_the_metrics_as_a_run_by_each_rule_has_them(world: World) -> None:
    found = {}
    for rule in (True, False, "auto"):
        config = replace(world.params.evaluate, filter_seen=rule)
        found[rule] = run(replace(world.params, evaluate=config), **world.inputs)
    for name in ("recall_at_10", "ndcg_at_10", "noties_recall_at_10", "noties_ndcg_at_10"):
        part, metric = ("noties_", name[7:]) if name.startswith("noties_") else ("", name)
        for metrics in found.values():
            assert metrics[f"{part}seen_dropped_{metric}"] == found[True][name]
            assert metrics[f"{part}seen_included_{metric}"] == found[False][name]
    assert found[True]["recall_at_10"] != found[False]["recall_at_10"]
    assert found["auto"]["seen_dropped"] == found["auto"]["cooccurrence_seen_dropped"]
    assert [found[rule]["seen_dropped"] for rule in (True, False)] == [1, 0]


def test_without_ties_nothing_stands_twice(world: World) -> None:
    apart = replace(world.splits, timestamps_N=np.arange(len(world.splits.items_N)))
    apart.write(world.paths["splits"])
    write_generator(world)
    metrics = run(world.params, **world.inputs)
    assert metrics["tie_share"] == 0
    assert [name for name in metrics if name.startswith("noties_")] == ["noties_users"]


def test_the_seed_is_no_part_of_the_recipe_but_the_strategy_is(world: World) -> None:
    origins = []
    for seed, strategy in ((0, "full"), (1, "full"), (1, "rastp")):
        write_generator(world, seed, strategy)
        run(world.params, **world.inputs)
        origins.append(Ranks.read(world.paths["reports"] / "ranks.parquet").origin)
    assert origins[0].recipe == origins[1].recipe != origins[2].recipe
    assert len({origin.model for origin in origins}) == 3


def test_a_model_trained_on_other_splits_is_refused(world: World) -> None:
    other = replace(world.splits, items_N=world.splits.items_N[::-1].copy())
    other.write(world.paths["splits"])
    with pytest.raises(UserError, match="trained on other splits"):
        run(world.params, **world.inputs)


def test_a_model_of_another_catalogue_is_refused(world: World) -> None:
    replace(world.splits, summary={**world.splits.summary, "items": 21}).write(world.paths["splits"])
    with pytest.raises(UserError, match="knows 20 items"):
        run(world.params, **world.inputs)


def test_no_test_items_is_an_error_that_says_so(world: World) -> None:
    replace(world.splits, test_target=np.full(USERS, -1)).write(world.paths["splits"])
    write_generator(world)
    with pytest.raises(UserError, match="no user has a test item"):
        run(world.params, **world.inputs)


@pytest.mark.parametrize(
    "gone",
    [
        "reports/timings.json",
        "models/generator/config.json",
        "data/splits/items_N.npy",
        "models/counting/neighbours.safetensors",
    ],
)
def test_a_missing_input_is_named_and_nothing_is_written(world: World, gone: str) -> None:
    (world.root / gone).unlink()
    with pytest.raises(UserError, match=gone.rsplit("/", 1)[1]):
        run(world.params, **world.inputs)
    assert not (world.paths["reports"] / "metrics.json").exists()


@pytest.mark.parametrize("change", [("1", "2"), ("_", "\\u0000"), ("checksum", "checksun"), ("{", "[")])
def test_damaged_timings_are_named(world: World, change: tuple[str, str]) -> None:
    path = world.paths["reports"] / "timings.json"
    write_json(path, sealed(TIMINGS, path.parent, []))
    assert run(world.params, **world.inputs).items() >= TIMINGS.items()
    assert "checksum" not in (world.paths["reports"] / "metrics.json").read_text()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(UserError, match=r"timings\.json") as caught:
        run(world.params, **world.inputs)
    assert "\n" not in caught.value.what
    assert "dvc checkout" in caught.value.fix


def test_reports_of_another_model_are_refused(world: World) -> None:
    run(world.params, **world.inputs)
    check_reports(world.paths["reports"], world.paths["generator"])
    write_generator(world, seed=5)
    with pytest.raises(UserError, match="another model"):
        check_reports(world.paths["reports"], world.paths["generator"])


def test_metrics_of_another_run_are_refused(world: World) -> None:
    run(world.params, **world.inputs)
    path = world.paths["reports"] / "metrics.json"
    write_json(path, {**json.loads(path.read_text()), "recall_at_10": 0.123})
    with pytest.raises(UserError, match="does not belong"):
        check_reports(world.paths["reports"], world.paths["generator"])


def test_damaged_ranks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "ranks.parquet"
    with pytest.raises(UserError, match="is not here"):
        Ranks.read(path)
    path.write_bytes(b"PAR1 cut short")
    with pytest.raises(UserError, match="cannot be read"):
        Ranks.read(path)
    pd.DataFrame({"rank": [1]}).to_parquet(path)
    with pytest.raises(UserError, match="cannot be read"):
        Ranks.read(path)


@settings(max_examples=50)
@given(
    users=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=5),
    longest=st.integers(1, 9),
)
def test_a_repeat_is_an_item_that_its_history_holds(users: list[list[int]], longest: int) -> None:
    ends = np.cumsum([len(items) for items in users])
    none = np.full(len(users), -1)
    splits = Splits(
        items_N=np.concatenate(users).astype(np.int32),
        timestamps_N=np.arange(ends[-1]),
        offsets=np.array([0, *ends]),
        train_end=ends,
        valid_target=none,
        test_target=none,
        summary={"max_history": longest},
    )
    slow = [items[n] in items[max(0, n - longest) : n] for items in users for n in range(len(items))]
    assert is_repeat(splits, np.arange(ends[-1])).tolist() == slow


def test_an_exact_ranking_has_the_deep_metrics_that_its_length_allows(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = ("recall_at_12", "ndcg_at_15", "mrr_at_18")
    for module in ("figures", "table"):
        monkeypatch.setattr(f"pipeline.evaluate.{module}.DEEP_METRICS", deep)
    cases: tuple[tuple[DecodingMethod, int, tuple[str, ...]], ...]
    cases = (("exact", 16, deep[:2]), ("exact", 20, deep), ("constrained", 20, ()))
    for decoding, beam, expected in cases:
        config = replace(world.params.evaluate, decoding=decoding, beam=beam)
        metrics = run(replace(world.params, evaluate=config), **world.inputs)
        assert [name for name in deep if name in metrics] == list(expected)
        frame = pd.read_parquet(world.paths["reports"] / "ranks.parquet")
        assert metrics["seen_dropped"] == 0
        by_rule = {"": frame["rank"], "seen_included_": frame["rank"], "seen_dropped_": frame["other_rank"]}
        for rule, ranks in by_rule.items():
            assert [name for name in deep if rule + name in metrics] == list(expected)
            for name in expected:
                words, k = name.split("_at_")
                found = [rank for rank in ranks if 1 <= rank <= int(k)]
                gain = {"recall": lambda _: 1.0, "ndcg": lambda r: 1 / np.log2(r + 1), "mrr": lambda r: 1 / r}[words]
                assert metrics[rule + name] == pytest.approx(sum(map(gain, found)) / len(ranks))
                assert found
        assert ("deeper: recall@12 " in capsys.readouterr().out) == bool(expected)
