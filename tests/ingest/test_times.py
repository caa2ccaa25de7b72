"""The order of a log within a second: every source and format, from the raw file to the ties of the split."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_logs import START, Ingest, csv_text, write
from settings import read_params

from pipeline.artifacts import Splits
from pipeline.errors import UserError
from pipeline.raw_times import MEANING
from pipeline.split.stage import run as run_split

NAMES = ("user", "item", "timestamp")


def write_times(path: Path, rows: list[tuple[str, str, int]], *, milliseconds: bool) -> Path:
    """Write rows of (user, item, microseconds) as the file's name demands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scale, digits = (1000, 3) if milliseconds else (1_000_000, 6)
    written = [(user, item, f"{time // scale}.{time % scale:0{digits}}") for user, item, time in rows]
    if path.suffix == ".parquet":
        users, items, times = zip(*rows, strict=True)
        pq.write_table(pa.table([users, items, pa.array(times, pa.timestamp("us"))], NAMES), path)
        return path
    if path.suffix == ".jsonl":
        lines = [f'{{"user": "{user}", "item": "{item}", "timestamp": {time}}}\n' for user, item, time in written]
        return write(path, "".join(lines))
    text = csv_text(written)
    return write(path, text.replace(",", "\t") if path.suffix == ".tsv" else text)


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.jsonl", "log.parquet"])
@pytest.mark.parametrize("milliseconds", [False, True])
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_newest_first_log_ends_in_time_order(
    ingest: Ingest, tmp_path: Path, name: str, milliseconds: bool, data: st.DataObject
) -> None:
    step = data.draw(st.sampled_from([1, 999, 100_000, 333_333, 1_000_000]), "microseconds between interactions")
    rows = [
        (f"u{user}", f"i{item}", START * 1_000_000 + step * (7 * item + user)) for item in range(7) for user in range(3)
    ]
    path = write_times(tmp_path / name, rows[::-1], milliseconds=milliseconds)
    result = ingest(path, k_core=0, time_unit="ms" if milliseconds else "s")
    unit = 1 if step % 1_000_000 else 1_000_000
    expected = sorted(rows, key=lambda row: (-int(row[0][1:]), row[2]))  # the file's last user comes first
    assert result.rows == [(user, item, time // unit) for user, item, time in expected]
    assert result.summary["time_unit"] == ("us" if unit == 1 else "s")
    assert (result.summary["first_timestamp"], result.summary["last_timestamp"]) == (
        rows[0][2] // unit,
        rows[-1][2] // unit,
    )


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("setting", ["s", "ms"])
@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
def test_parquet_timestamps_of_any_unit_are_exact(
    ingest: Ingest, tmp_path: Path, unit: str, setting: str, zone: str | None
) -> None:
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    ticks = [START * scale + (7777 if unit == "ns" else 7) * n for n in range(6)]
    times = pa.array(ticks[::-1], pa.timestamp(unit, zone))
    pq.write_table(pa.table([["u"] * 6, list("fedcba"), times], NAMES), tmp_path / "log.parquet")
    result = ingest(tmp_path / "log.parquet", k_core=0, time_unit=setting)
    written = 1 if unit == "s" else 1_000_000
    assert [row[2] for row in result.rows] == sorted(tick * written // scale for tick in ticks)
    assert [row[1] for row in result.rows] == list("abcdef")


def test_times_beyond_all_bounds_are_rejects_and_do_not_wrap_around(ingest: Ingest, tmp_path: Path) -> None:
    times = pa.array([START * 1000, START * 1000 + 1, 2**62, -(2**62)], pa.timestamp("ms"))
    table = pa.table([["u", "v", "u", "u"], ["a", "a", "b", "c"], times], NAMES)
    pq.write_table(table, tmp_path / "log.parquet")
    result = ingest(tmp_path / "log.parquet", k_core=0, max_reject_rate=1.0)
    assert [reason for _, _, reason in result.rejects] == ["timestamp outside 1990..2100"] * 2


@pytest.mark.parametrize("kind", [np.float64, np.int64, pd.Int64Dtype(), "float ms"])
def test_numbers_of_parquet_are_read_as_they_would_be_printed(ingest: Ingest, tmp_path: Path, kind: Any) -> None:
    seconds = [START + n / 10 for n in range(6)]
    frame = pd.DataFrame({"user": "u", "item": list("fedcba"), "timestamp": seconds[::-1]})
    if kind == "float ms":
        frame["timestamp"] = (frame["timestamp"] * 1000).round()
    elif kind is not np.float64:
        frame["timestamp"] = (frame["timestamp"] * 1000).round().astype(kind)
    frame.to_parquet(tmp_path / "log.parquet")
    result = ingest(tmp_path / "log.parquet", k_core=0, time_unit="s" if kind is np.float64 else "ms")
    assert result.rows == [("u", "abcdef"[n], START * 1_000_000 + 100_000 * n) for n in range(6)]


FORMS: dict[str, Callable[[datetime], str]] = {
    "s": lambda time: str(int(time.timestamp())),
    "ms": lambda time: f"{int(time.timestamp())}000",
    "us": lambda time: f"{int(time.timestamp())}000000",
    "ns": lambda time: f"{int(time.timestamp())}000000000",
    "iso with zone": lambda time: time.isoformat(),
    "iso without zone": lambda time: time.strftime("%Y-%m-%d %H:%M:%S"),
    "date": lambda time: time.strftime("%Y-%m-%d"),
    "order": lambda time: str(time.minute),
}
MOMENTS = [datetime(2020, 9, 13, 12, minute, tzinfo=UTC) for minute in range(6)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_times_is_recognised_and_reported(
    ingest: Ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, suffix: str
) -> None:
    texts = [FORMS[form](time) for time in MOMENTS]
    frame = pd.DataFrame({"user": "u", "item": list("abcdef"), "timestamp": texts}).iloc[::-1]
    path = tmp_path / f"log{suffix}"
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    result = ingest(path, k_core=0)
    assert (result.summary["time_format"], result.summary["time_unit"]) == (form, "s")
    assert f"times are {'a mere order' if form == 'order' else MEANING[form]}" in capsys.readouterr().out
    day = datetime(2020, 9, 13, tzinfo=UTC)
    expected = {"date": [int(day.timestamp())] * 6, "order": [*range(6)]}
    assert [row[2] for row in result.rows] == expected.get(form, [int(time.timestamp()) for time in MOMENTS])
    assert [row[1] for row in result.rows] == list("fedcba" if form == "date" else "abcdef")  # one day: a tie


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (pa.timestamp("ms"), "iso without zone"),
        (pa.timestamp("ns", "Asia/Tokyo"), "iso with zone"),
        (pa.date32(), "date"),
        (pa.date64(), "date"),
    ],
)
def test_times_of_parquet_have_the_forms_of_their_texts(
    ingest: Ingest, tmp_path: Path, kind: pa.DataType, form: str
) -> None:
    times = pa.array(MOMENTS, pa.timestamp("s", "UTC")).cast(pa.timestamp("s")).cast(kind)
    pq.write_table(pa.table([["u"] * 6, list("abcdef"), times], NAMES), tmp_path / "log.parquet")
    assert ingest(tmp_path / "log.parquet", k_core=0).summary["time_format"] == form


def test_the_form_of_most_rows_counts_over_all_parts_of_a_log(ingest: Ingest, tmp_path: Path) -> None:
    parts = tmp_path / "logs"
    write(
        parts / "interactions.1.csv", csv_text([("u", "a", "2014-05-13T16:53:20Z"), ("", "b", "2014-05-13T16:53:21Z")])
    )
    write(parts / "interactions.2.csv", csv_text([("u", f"i{n}", START + n) for n in range(6)]))
    result = ingest(parts, k_core=0, max_reject_rate=0.5)
    assert result.summary["time_format"] == "s"
    assert result.rows == [("u", f"i{n}", START + n) for n in range(6)]
    reason = "timestamp is written as ISO 8601 with a zone, most others as seconds since 1970"
    assert result.rejects == [("interactions.1.csv", 2, reason), ("interactions.1.csv", 3, "user is missing")]
    assert result.summary["rows_read"] == 8


def test_rows_in_another_form_fail_the_stage_where_they_are_many(ingest: Ingest, tmp_path: Path) -> None:
    rows = [("u", f"i{n}", START + n) for n in range(6)] + [("u", "x", "2014-05-13")]
    with pytest.raises(UserError, match="1 of 7 rows") as error:
        ingest(write(tmp_path / "log.csv", csv_text(rows)), k_core=0)
    assert "All times of a log have one form" in error.value.fix


def test_a_unit_that_cannot_be_is_named_with_the_one_that_can(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", csv_text([("u", f"i{n}", (START + n) * 1000) for n in range(6)]))
    with pytest.raises(UserError, match="6 of 6 rows") as error:
        ingest(path, k_core=0, time_unit="s")
    assert "outside 1990..2100 in s, the set ingest.time_unit, but not in ms" in error.value.why
    assert ingest(path, k_core=0, time_unit="ms").rows == ingest(path, k_core=0).rows


@pytest.mark.parametrize(
    ("times", "told"), [((20231121, 20240229), True), ((20231121, 20241321), False), ((0, 9), False)]
)
def test_days_without_dashes_are_an_order_that_says_so(
    ingest: Ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str], times: tuple[int, int], told: bool
) -> None:
    result = ingest(write(tmp_path / "log.csv", csv_text([("u", f"i{time}", time) for time in times])), k_core=0)
    assert result.summary["time_format"] == "order"
    said = f"these times look like days without dashes, from {times[0]} on: written as 2024-01-31 they are dates"
    assert (said in capsys.readouterr().out) == told


def test_an_order_has_no_dates_to_split_by(ingest: Ingest, tmp_path: Path) -> None:
    text = csv_text([("u", f"i{n}", n) for n in range(6)])
    splits = split_of(ingest, tmp_path, text)
    assert splits.seconds().tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(UserError, match="mere order"):
        split_of(ingest, tmp_path, text, protocol="temporal", valid_from="2014-05-14", test_from="2014-05-15")


def split_of(ingest: Ingest, folder: Path, text: str, **settings: Any) -> Splits:
    result = ingest(write(folder / "log.csv", text), k_core=0)
    run_split(read_params({"split": settings}), interactions=result.folder, output=folder / "splits")
    return Splits.read(folder / "splits")


def test_the_split_keeps_the_precision_and_reads_seconds(ingest: Ingest, tmp_path: Path) -> None:
    rows = [("u", f"i{n}", f"{START + n // 2}.{5 * (n % 2)}") for n in range(6)] + [("v", "i1", START)] * 1
    rows += [("v", f"i{n}", f"{START}.250") for n in range(2, 6)]
    splits = split_of(ingest, tmp_path, csv_text(rows))
    assert splits.summary["time_unit"] == "us"
    assert splits.timestamps_N[:3].tolist() == [START * 10**6, START * 10**6 + 500_000, START * 10**6 + 1_000_000]
    assert splits.seconds().tolist() == [START, START, START + 1, START + 1, START + 2, START + 2, *[START] * 5]
    assert splits.seconds(np.array([2, 5])).tolist() == [START + 1, START + 2]
    assert splits.summary["tie_share"] == 0.5  # of u and v only v has interactions of one moment


def test_a_log_of_whole_seconds_has_no_word_of_a_unit_in_its_splits(ingest: Ingest, tmp_path: Path) -> None:
    splits = split_of(ingest, tmp_path, csv_text([("u", f"i{n}", f"{START + n}.0") for n in range(6)]))
    assert "time_unit" not in splits.summary
    assert splits.seconds().tolist() == splits.timestamps_N.tolist() == [START + n for n in range(6)]


def test_days_of_a_temporal_split_begin_at_their_first_microsecond(ingest: Ingest, tmp_path: Path) -> None:
    day = 1_400_025_600  # 2014-05-14
    times = [day - 1, f"{day - 1}.999999", day, f"{day + 86399}.999999", day + 86400, day + 86401]
    splits = split_of(
        ingest,
        tmp_path,
        csv_text([("u", f"i{n}", time) for n, time in enumerate(times)]),
        protocol="temporal",
        valid_from="2014-05-14",
        test_from="2014-05-15",
    )
    assert (splits.train_end.tolist(), splits.valid_target.tolist(), splits.test_target.tolist()) == ([2], [2], [4])


def test_shuffled_ties_leave_the_order_within_a_second_alone(ingest: Ingest, tmp_path: Path) -> None:
    rows = [("u", f"i{n:02}", f"{START}.{n:02}") for n in range(50)]
    random.Random(0).shuffle(rows)
    splits = split_of(ingest, tmp_path, csv_text(rows), ties="shuffled")
    names = pd.read_parquet(tmp_path / "output" / "interactions" / "items.parquet").raw_id
    assert names[np.asarray(splits.items_N)].tolist() == [f"i{n:02}" for n in range(50)]


def test_only_the_split_reads_timestamps_and_all_others_read_seconds(root: Path) -> None:
    readers = {
        str(path.relative_to(root))
        for folder in ("pipeline", "benchmarks", "examples")
        for path in (root / folder).rglob("*.py")
        if ".timestamps_N" in path.read_text(encoding="utf-8")
    }
    assert readers == {"pipeline/artifacts.py"}
