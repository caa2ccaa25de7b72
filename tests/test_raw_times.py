"""Times as they are written, against Python's own Decimal and datetime."""

import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ingest.values import reasons
from pipeline.raw_times import (
    IMPOSSIBLE_DATE,
    IMPOSSIBLE_TIME,
    MEANING,
    NO_ORDER,
    NO_TIME,
    TimeColumn,
)

NOON = 1_600_000_000  # 2020-09-13 12:26:40 UTC

MOST = ", most others as ISO 8601 without a zone"


def read(texts: list[str | None], time_unit: str = "auto") -> tuple[str | None, list[int | str]]:
    """Return the form, and for each text its microseconds or the reason against it."""
    column = TimeColumn(time_unit)
    times, complaints = column.read(pa.array(texts, pa.string()))
    wrong = reasons(complaints, len(texts)).to_pylist()
    values = times.to_pylist()
    assert all((value is None) == (reason is not None) for value, reason in zip(values, wrong, strict=True))
    return column.form, [value if reason is None else reason for value, reason in zip(values, wrong, strict=True)]


@pytest.mark.parametrize(
    ("text", "unit", "time"),
    [
        ("631152000", "s", 631152000_000000),
        ("631151999", "s", IMPOSSIBLE_TIME),
        ("4102444799.9", "s", 4102444799_900000),
        ("4102444800", "s", IMPOSSIBLE_TIME),
        ("1400000000999", "ms", 1400000000_999000),
        ("1400000000999.0579", "ms", 1400000000_999057),
        ("1400000000999", "s", f"{IMPOSSIBLE_TIME} in s, the set ingest.time_unit, but not in ms"),
        ("1400000000", "ms", f"{IMPOSSIBLE_TIME} in ms, the set ingest.time_unit, but not in s"),
        ("1400000000999123", "us", 1400000000_999123),
        ("1400000000999123.9", "us", 1400000000_999123),
        ("1400000000999123456", "ns", 1400000000_999123),
        ("1400000000999123456.5", "ns", 1400000000_999123),
        ("1.4e18", "ns", 1400000000_000000),
        ("1.4e9", "s", 1400000000_000000),
        ("1.4000000001234567e+9", "s", 1400000000_123456),
        (" 1600000000.3 ", "s", 1600000000_300000),
        ("1600000000.123456789", "s", 1600000000_123456),
        ("1400000000.", "s", 1400000000_000000),
        ("+1400000000", "s", 1400000000_000000),
        ("1e999999999", "s", IMPOSSIBLE_TIME),
        ("1e9999999999999999999999", "s", IMPOSSIBLE_TIME),
        ("9" * 40, "s", IMPOSSIBLE_TIME),
        ("0x53724E00", "s", NO_TIME),
        ("inf", "s", NO_TIME),
        ("-5", "s", IMPOSSIBLE_TIME),
        ("", "s", "timestamp is missing"),
        ("NaT", "s", "timestamp is missing"),
        ("yesterday", "s", NO_TIME),
        (None, "s", "timestamp is missing"),
    ],
)
@pytest.mark.parametrize("beside", [[], ["1400000000"], ["x", None]])
def test_times_lie_between_1990_and_2100_in_microseconds(
    text: str | None, unit: str, time: int | str, beside: list[str | None]
) -> None:
    assert read([text, *beside], unit)[1][0] == time


@settings(max_examples=60)
@given(st.lists(st.decimals(0, 5 * 10**18, places=9), min_size=1, max_size=6), st.sampled_from(["s", "ms", "us", "ns"]))
def test_no_digit_of_a_time_is_rounded_by_a_float(times: list[Decimal], unit: str) -> None:
    values, _ = TimeColumn(unit).read(pa.array([str(time) for time in times], pa.string()))
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    exact = [math.floor(Fraction(time) * 1_000_000 / ticks) for time in times]
    assert values.to_pylist() == [n if 631152000_000000 <= n < 4102444800_000000 else None for n in exact]


@settings(max_examples=30)
@given(st.lists(st.integers(631152000, 4102444799), min_size=1, max_size=6), st.sampled_from(["s", "ms", "us", "ns"]))
def test_the_unit_of_numbers_is_known_by_their_size(seconds: list[int], unit: str) -> None:
    zeros = {"s": "", "ms": "000", "us": "000000", "ns": "000000000"}[unit]
    assert read([f"{second}{zeros}" for second in seconds]) == (unit, [second * 1_000_000 for second in seconds])


@settings(max_examples=60)
@given(
    st.datetimes(datetime(1991, 1, 1), datetime(2099, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
    st.sampled_from(["T", " ", "t", "  "]),
    st.sampled_from(["auto", "seconds", "milliseconds", "minutes"]),
    st.sampled_from(["+hh:mm", "+hhmm", "Z", " UTC", ""]),
)
def test_iso_times_are_what_datetime_reads(
    time: datetime, minutes: int, between: str, precision: str, zone: str
) -> None:
    offset = timezone(timedelta(minutes=minutes)) if "h" in zone else UTC
    text = time.isoformat(between[0], precision)
    expected = datetime.fromisoformat(text).replace(tzinfo=offset)
    sign = "-" if minutes < 0 else "+"
    hours, rest = divmod(abs(minutes), 60)
    suffix = zone.replace("+", sign).replace("hh", f"{hours:02}").replace("mm", f"{rest:02}")
    written = text.replace(between[0], between) + suffix
    microseconds = (expected - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert read([written]) == ("iso with zone" if zone else "iso without zone", [microseconds])


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2020-09-13 12:26:40.123456789", NOON * 10**6 + 123456),
        ("2020-09-13 12:26:40,5", NOON * 10**6 + 500000),
        ("2020/09/13 12:26:40", NOON * 10**6),
        ("20200913T122640", NOON * 10**6),
        ("2020-02-30 12:00:00", IMPOSSIBLE_DATE),
        ("2023-02-29T00:00", IMPOSSIBLE_DATE),
        ("2023-04-31T00:00", IMPOSSIBLE_DATE),
        ("2023-13-01T00:00", IMPOSSIBLE_DATE),
        ("2023-00-10T00:00", IMPOSSIBLE_DATE),
        ("2023-01-00T00:00", IMPOSSIBLE_DATE),
        ("2023-01-01T24:00", IMPOSSIBLE_DATE),
        ("2023-01-01T12:60", IMPOSSIBLE_DATE),
        ("2023-01-01T12:00:61", IMPOSSIBLE_DATE),
        ("1989-12-31T23:59:59", IMPOSSIBLE_TIME),
        ("2100-01-01T00:00:00", IMPOSSIBLE_TIME),
        ("0000-01-01T00:00:00", IMPOSSIBLE_TIME),
        ("2023-01-01T12", NO_TIME),
        ("13.09.2020 12:26:40", NO_TIME),
        ("2020-9-13 12:26:40", NO_TIME),
        ("<value out of range: 4611686018427387904>", IMPOSSIBLE_TIME),  # as Arrow writes a time beyond its calendar
        ("2020-09-13T12:26:40Z", f"timestamp is written as {MEANING['iso with zone']}{MOST}"),
        ("2020-09-13", f"timestamp is written as {MEANING['date']}{MOST}"),
        ("1600000000", f"timestamp is written as seconds since 1970{MOST}"),
    ],
)
def test_a_day_and_an_hour_must_exist(text: str, time: int | str) -> None:
    form, found = read(["2021-01-01 00:00", "2021-01-01T00:00:00", text])
    assert (form, found[2]) == ("iso without zone", time)


def test_a_zone_must_exist() -> None:
    _, found = read(["2020-09-13T14:26:40+02", "2020-09-13T12:26:40+24:00", "2020-09-13T12:26:40+01:60"])
    assert found == [NOON * 10**6, IMPOSSIBLE_DATE, IMPOSSIBLE_DATE]


SECONDS = st.sampled_from([631_152_000, 1_600_000_000, 4_102_444_799, 631_151_999, 4_102_444_800, 7])
PLAIN = st.tuples(SECONDS, st.sampled_from(["", "000", "123", "123456", "123456789"])).map(
    lambda pair: f"{pair[0]}{pair[1]}"
)
ODD = st.sampled_from(["", None, " 1600000000", "1600000000.5", "+1600000000", "2020-09-13", "x", "001600000000"])


@settings(max_examples=150)
@given(
    chunks=st.lists(st.lists(PLAIN | st.just("1600000000"), min_size=1, max_size=3), max_size=4),
    odd=st.lists(ODD, max_size=2),
    form=st.sampled_from([None, "s", "ms", "us", "ns", "order", "date"]),
    time_unit=st.sampled_from(["auto", "auto", "s", "ms", "order"]),
)
def test_plain_digits_are_read_like_any_text(
    chunks: list[list[str]], odd: list[str | None], form: str | None, time_unit: str
) -> None:
    """A chunk of digits alone takes a shorter way, with the same times, complaints, counts and form."""
    short, long = TimeColumn(time_unit, form), TimeColumn(time_unit, form)
    for rows in (*chunks, odd, *chunks):
        text = pa.array(rows, pa.string())
        times, wrong = short.read(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TimeColumn, "_all_plain", lambda column, text: None)  # noqa: ARG005
            all_times, all_wrong = long.read(text)
        all_reasons = reasons(all_wrong, len(text))
        assert reasons(wrong, len(text)) == all_reasons
        good = pc.is_null(all_reasons)
        assert times.filter(good) == all_times.filter(good)
        assert (short.form, short.counts) == (long.form, long.counts)


def test_dates_are_the_first_moment_of_their_day_in_utc() -> None:
    assert read(["2020-09-13", "2020-09-14"]) == ("date", [1599955200_000000, 1600041600_000000])


def test_whole_numbers_from_zero_are_an_order() -> None:
    form, found = read(["0", "1", "2.0", "3e0", "2.5", "-1", "631151999", "1600000000"])
    assert form == "order"
    assert found[:4] == [0, 1_000_000, 2_000_000, 3_000_000]
    assert found[4:6] == [NO_ORDER] * 2
    assert found[6] == 631151999_000000
    assert found[7] == f"timestamp is written as seconds since 1970, most others as {MEANING['order']}"


def test_a_set_order_takes_any_whole_number_and_no_date() -> None:
    form, found = read(["1600000000", "1600000000000", "7.5", "9000000000000", "2020-01-01"], "order")
    assert (form, found[:2]) == ("order", [1600000000_000000, 1600000000000_000000])
    assert found[2:4] == [NO_ORDER] * 2
    assert found[4] == "timestamp is ISO 8601, and ingest.time_unit is order"


def test_a_set_unit_is_about_numbers_alone() -> None:
    assert read(["2020-09-13 12:26:40"] * 2, "ms") == ("iso without zone", [NOON * 10**6] * 2)
    assert read(["1600000000", "0", "1"], "s") == ("s", [NOON * 10**6, IMPOSSIBLE_TIME, IMPOSSIBLE_TIME])


def test_the_form_of_most_rows_counts_and_of_equally_many_the_earlier() -> None:
    assert read(["1600000000000", "1600000000", "2020-01-01", "1600000001"])[0] == "s"
    assert read(["1600000000000", "1600000000"])[0] == "ms"
    column = TimeColumn("auto")
    for chunk in (["x"], ["1600000000000"], ["1600000000"] * 2):
        column.read(pa.array(chunk))
    assert (column.form, column.majority) == ("ms", "s")
