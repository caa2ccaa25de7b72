"""The split stage against a slow reference that walks through one user after another."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from settings import read_params, some, some_params

from pipeline import artifacts
from pipeline.artifacts import Interactions, Splits, write_parquet
from pipeline.errors import UserError
from pipeline.split import protocols
from pipeline.split.config import SplitConfig
from pipeline.split.protocols import leave_one_out, temporal
from pipeline.split.stage import run, split_log
from pipeline.split.ties import shuffle_ties

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
DAY = 86_400
VALID_FROM, TEST_FROM = "1970-01-11", "1970-01-21"  # days 10 and 20

# One list of days per user, not sorted yet; a day may come several times.
histories = st.lists(st.lists(st.integers(0, 29), max_size=8), min_size=1, max_size=8)


def flat(days: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(users, items, timestamps) sorted by (user, time); no two interactions have the same item."""
    users = np.array([user for user, own in enumerate(days) for _ in own], dtype=np.int64)
    times = np.array([day * DAY for own in days for day in sorted(own)], dtype=np.int64)
    return users, np.arange(len(users), dtype=np.int32), times


def offsets_of(days: list[list[int]]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(own) for own in days])]).astype(np.int64)


def one_by_one(days: list[list[int]], protocol: str) -> list[tuple[int, int, int]]:
    """(train_end, valid_target, test_target) of each user, as the rules say in words."""
    rows, start = [], 0
    for own in map(sorted, days):
        train, valid, test = len(own), -1, -1
        if protocol == "leave_one_out":
            if len(own) >= 3:
                train, valid, test = len(own) - 2, len(own) - 2, len(own) - 1
            elif len(own) == 2:
                train, test = 1, 1
        else:
            train = sum(day < 10 for day in own)
            in_valid = [i for i, day in enumerate(own) if 10 <= day < 20 and i > 0]
            in_test = [i for i, day in enumerate(own) if day >= 20 and i > 0]
            # the period's first interaction, unless it is the user's very first, which has no history
            valid = in_valid[0] if in_valid and in_valid[0] == train else -1
            test = in_test[0] if in_test and in_test[0] == sum(day < 20 for day in own) else -1
        held = [start + at if at >= 0 else -1 for at in (valid, test)]
        rows.append((start + train, held[0], held[1]))
        start += len(own)
    return rows


@given(histories)
@settings(max_examples=60)
def test_leave_one_out_equals_the_reference(days: list[list[int]]) -> None:
    targets = leave_one_out(offsets_of(days))
    got = list(zip(targets.train_end, targets.valid_target, targets.test_target, strict=True))
    assert got == one_by_one(days, "leave_one_out")


@given(histories, st.integers(1, 9))
@settings(max_examples=60)
def test_temporal_equals_the_reference(days: list[list[int]], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "BLOCK_USERS", block)
        targets = temporal(offsets_of(days), flat(days)[2], VALID_FROM, TEST_FROM)
    got = list(zip(targets.train_end, targets.valid_target, targets.test_target, strict=True))
    assert got == one_by_one(days, "temporal")


@given(histories, st.sampled_from(["leave_one_out", "temporal"]), st.sampled_from(["source", "shuffled"]))
@settings(max_examples=60)
def test_no_held_out_interaction_lies_below_train_end_and_validation_never_sees_test(
    days: list[list[int]], protocol: Literal["leave_one_out", "temporal"], ties: Literal["source", "shuffled"]
) -> None:
    assume(any(days))  # ingest refuses an empty log
    config = some(SplitConfig, protocol=protocol, ties=ties, valid_from=VALID_FROM, test_from=TEST_FROM)
    try:
        splits = split_log(*flat(days), users=len(days), items=99, config=config, seed=1)
    except UserError:
        return  # nothing to hold out in this log
    for user in range(splits.users):
        train = set(range(splits.offsets[user], splits.train_end[user]))
        valid, test = splits.valid_target[user], splits.test_target[user]
        assert not train & {valid, test}
        if valid >= 0 and test >= 0:
            assert valid < test  # the history of a target lies before it, so validation cannot read the test item
        for target in (valid, test):
            assert target < 0 or splits.offsets[user] < target < splits.offsets[user + 1]
        if protocol == "temporal":
            assert all(splits.timestamps_N[at] < 10 * DAY for at in train)
            assert valid < 0 or 10 * DAY <= splits.timestamps_N[valid] < 20 * DAY
            assert test < 0 or splits.timestamps_N[test] >= 20 * DAY


@given(histories, st.integers(0, 3))
@settings(max_examples=60)
def test_a_shuffle_moves_interactions_only_inside_a_users_equal_timestamps(days: list[list[int]], seed: int) -> None:
    users, _, times = flat(days)
    order = shuffle_ties(users, times, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(users)))
    assert (users[order] == users).all()
    assert (times[order] == times).all()
    assert (shuffle_ties(users, times, np.random.default_rng(seed)) == order).all()


def test_a_shuffle_puts_every_tied_interaction_last_equally_often() -> None:
    last = [shuffle_ties(np.zeros(4, int), np.zeros(4, int), np.random.default_rng(seed))[-1] for seed in range(2000)]
    assert np.bincount(last, minlength=4) == pytest.approx([500] * 4, abs=80)


def test_ties_source_keeps_the_order_of_the_log() -> None:
    users, items, times = flat([[3, 3, 3, 3, 5], [1, 1, 2, 2]])
    splits = split_log(users, items, times, users=2, items=9, config=some(SplitConfig), seed=7)
    assert (splits.items_N == items).all()


def test_the_summary_counts_targets_ties_and_short_users() -> None:
    # user 0 trains on three; 1 has only a test target; 2 only trains; 3 has a tie at its test target; 4 has nothing
    days = [[1, 2, 3, 4, 5], [1, 2], [7], [1, 4, 4], []]
    summary = split_log(*flat(days), users=5, items=40, config=some(SplitConfig, max_history=9), seed=0).summary
    assert summary == {
        "protocol": "leave_one_out",
        "ties": "source",
        "max_history": 9,
        "users": 5,
        "items": 40,
        "interactions": 11,
        "train_targets": 2,
        "valid_targets": 2,
        "test_targets": 3,
        "users_too_short": 3,
        "tie_share": round(1 / 3, 6),
        "valid_tie_share": 0.0,
    }


# ---------------------------------------------------------------------------------------------------- bad dates


@pytest.mark.parametrize(
    ("valid_from", "test_from", "message"),
    [
        ("", "2014-02-01", "needs split.valid_from and split.test_from"),
        ("2014-02-01", "2014-01-01", "must lie before"),
        ("2014-01-01", "2014-01-01", "must lie before"),
        ("1/2/2014", "2014-03-01", "split.valid_from is '1/2/2014', expected a day as YYYY-MM-DD"),
        ("2014-01-01", "2014-02-30", "split.test_from is '2014-02-30'"),
    ],
)
def test_a_bad_date_is_refused_when_params_are_read(valid_from: str, test_from: str, message: str) -> None:
    section = {"protocol": "temporal", "valid_from": valid_from, "test_from": test_from}
    with pytest.raises(UserError, match=message):
        read_params({"split": section})


def test_a_date_without_quotes_is_a_date_too() -> None:
    raw = yaml.safe_load("split: {protocol: temporal, valid_from: 2014-01-01, test_from: '2014-02-01'}")
    assert read_params(raw).split.valid_from == "2014-01-01"


@pytest.mark.parametrize(
    ("valid_from", "test_from", "part"),
    [
        ("1969-01-01", "1969-02-01", "train"),
        ("1970-01-09", "2000-01-01", "test"),
        ("1999-01-01", "2000-01-01", "valid"),
    ],
)
def test_dates_outside_the_log_name_its_first_and_last_day(valid_from: str, test_from: str, part: str) -> None:
    config = some(SplitConfig, protocol="temporal", valid_from=valid_from, test_from=test_from)
    with pytest.raises(UserError, match=f"no {part} target") as caught:
        split_log(*flat([[2, 5, 9, 12, 25]]), users=1, items=5, config=config, seed=0)
    assert "from 1970-01-03 to 1970-01-26" in caught.value.why


def test_a_log_with_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(UserError, match="no train target"):
        split_log(*flat([[1, 2, 3], [4, 5, 6]]), users=2, items=6, config=some(SplitConfig), seed=0)


# ---------------------------------------------------------------------------------------------------- the stage


def write_log(folder: Path, users: np.ndarray, items: np.ndarray, times: np.ndarray) -> None:
    log = pd.DataFrame({"user_id": users.astype(np.int32), "item_id": items.astype(np.int32), "timestamp": times})
    log["position"] = log.groupby("user_id").cumcount().astype(np.int32)
    source = Interactions(folder)
    write_parquet(source.log, log)
    for path, key, ids in ((source.users, "user_id", users), (source.items, "item_id", items)):
        write_parquet(path, pd.DataFrame({key: np.arange(ids.max() + 1, dtype=np.int32)}))


def test_a_second_run_writes_the_same_bytes_and_another_seed_other_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_log(tmp_path / "log", *flat([list(rng.integers(0, 4, 12)) for _ in range(30)]))
    written = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        params = some_params(seed=seed, split=some(SplitConfig, ties="shuffled"))
        run(params, interactions=tmp_path / "log", output=tmp_path / name)
        written[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert written["a"] == written["b"]
    differ = {name for name in written["a"] if written["a"][name] != written["c"][name]}
    assert differ == {"items_N.npy", "manifest.json"}


@pytest.mark.parametrize("ties", ["source", "shuffled"])
@pytest.mark.parametrize("rows", [1, 3, 7, 1000])
def test_a_log_read_in_blocks_is_split_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ties: str, rows: int
) -> None:
    """Users longer than a block, shorter ones, and one without an interaction, who is not in the log."""
    rng = np.random.default_rng(rows)
    days = [list(rng.integers(0, 4, length)) for length in (9, 1, 4, 0, 3, 30, 2, 2, 5)]
    users, _, times = flat(days)
    items = rng.integers(0, 50, len(users)).astype(np.int32)
    write_log(tmp_path / "log", users, items, times)
    monkeypatch.setattr(artifacts, "BLOCK_ROWS", rows)
    params = some_params(split=some(SplitConfig, ties=ties))
    run(params, interactions=tmp_path / "log", output=tmp_path / "splits")
    expected = split_log(users, items, times, users=9, items=items.max() + 1, config=params.split, seed=params.seed)
    found = Splits.read(tmp_path / "splits")
    for name in Splits.ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)
    assert found.summary == expected.summary
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "splits"]


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    users, items, times = flat([[1, 2, 3, 4], [5, 5, 6, 7, 8]])
    write_log(tmp_path / "log", users, items, times)
    summary = run(some_params(), interactions=tmp_path / "log", output=tmp_path / "splits")
    splits = Splits.read(tmp_path / "splits")
    assert splits.summary == summary
    assert splits.items_N.dtype == np.int32
    assert {getattr(splits, name).dtype for name in Splits.ARRAYS[1:]} == {np.dtype(np.int64)}
    assert splits.targets("test")[1].tolist() == [3, 8]
    assert splits.targets("valid")[1].tolist() == [2, 7]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
def test_on_amazon_beauty_44_percent_of_test_items_share_a_day_with_the_item_before() -> None:
    raw = pd.read_csv(SHARED / "amazon-beauty" / "interactions.csv.gz")
    raw["user_id"] = pd.factorize(raw["user"])[0]
    raw["item_id"] = pd.factorize(raw["asin"])[0].astype(np.int32)
    log = raw.sort_values(["user_id", "unix_time"], kind="stable")
    columns = [log[name].to_numpy() for name in ("user_id", "item_id", "unix_time")]
    summaries = {
        ties: split_log(*columns, users=22_363, items=12_101, config=some(SplitConfig, ties=ties), seed=42).summary
        for ties in ("source", "shuffled")
    }
    assert summaries["source"]["tie_share"] == pytest.approx(0.436, abs=0.001)
    assert summaries["shuffled"]["tie_share"] == summaries["source"]["tie_share"]
    assert summaries["source"]["test_targets"] == summaries["source"]["valid_targets"] == 22_363
    assert summaries["source"]["train_targets"] == 198_502 - 3 * 22_363


def test_days_are_days_of_utc() -> None:
    moment = int(datetime(1970, 1, 11, tzinfo=UTC).timestamp())
    targets = temporal(np.array([0, 3]), np.array([5, moment - 1, moment]), VALID_FROM, TEST_FROM)
    assert targets.train_end.tolist() == [2]
    assert targets.valid_target.tolist() == [2]
