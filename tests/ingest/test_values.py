"""Text to numbers and times, against Python's own float()."""

import math
from decimal import Decimal
from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ingest.values import IMPOSSIBLE_TIME, numbers, reasons, time_column

texts = st.one_of(
    st.none(),
    st.from_regex(r"[ ]?[+-]?[0-9]{0,3}\.?[0-9]{0,2}(e[+-]?[0-9]{1,3})?[ ]?", fullmatch=True),
    st.sampled_from(["", " ", "nan", "NaN", "inf", "-Infinity", "1e999", "true", "False", "TRUE", "x", "1_0", "0x1F"]),
)


def slow_number(text: str | None) -> float | None:
    """None where missing, NaN where it is no number."""
    if text is None or text.strip().lower() in ("", "nan"):
        return None
    flag = {"true": 1.0, "false": 0.0}.get(text.strip().lower())
    if flag is not None:
        return flag
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) and "_" not in text else math.nan


@settings(max_examples=200, deadline=None)
@given(st.lists(texts, min_size=1, max_size=6))
def test_numbers_are_what_float_reads_whatever_stands_beside_them(column: list[str | None]) -> None:
    values, missing = numbers(pa.array(column, pa.string()))
    expected = [slow_number(text) for text in column]
    assert missing.to_pylist() == [value is None for value in expected]
    assert values.to_pylist() == [None if value is None or math.isnan(value) else value for value in expected]


@pytest.mark.parametrize(
    ("text", "ticks", "time", "reason"),
    [
        ("631152000", 1, 631152000_000000, None),
        ("631151999", 1, None, IMPOSSIBLE_TIME),
        ("4102444799.9", 1, 4102444799_900000, None),
        ("4102444800", 1, None, IMPOSSIBLE_TIME),
        ("1400000000999", 1000, 1400000000_999000, None),
        ("1400000000999.0579", 1000, 1400000000_999057, None),
        ("1400000000999", 1, None, IMPOSSIBLE_TIME),
        ("1.4e9", 1, 1400000000_000000, None),
        ("1.4000000001234567e+9", 1, 1400000000_123456, None),
        (" 1600000000.3 ", 1, 1600000000_300000, None),
        ("1600000000.123456789", 1, 1600000000_123456, None),
        ("1400000000.", 1, 1400000000_000000, None),
        ("+1400000000", 1, 1400000000_000000, None),
        ("1e999999999", 1, None, IMPOSSIBLE_TIME),
        ("1e9999999999999999999999", 1, None, IMPOSSIBLE_TIME),
        ("9" * 40, 1, None, IMPOSSIBLE_TIME),
        ("0x53724E00", 1, None, "timestamp is not a number"),
        ("inf", 1, None, "timestamp is not a number"),
        ("-5", 1, None, IMPOSSIBLE_TIME),
        ("", 1, None, "timestamp is missing"),
        ("yesterday", 1, None, "timestamp is not a number"),
        (None, 1, None, "timestamp is missing"),
    ],
)
@pytest.mark.parametrize("beside", [[], ["1400000000"], ["x", None]])
def test_times_lie_between_1990_and_2100_in_microseconds(
    text: str | None, ticks: int, time: int | None, reason: str | None, beside: list[str | None]
) -> None:
    values, complaints = time_column(pa.array([text, *beside], pa.string()), ticks)
    assert values.to_pylist()[0] == time
    assert reasons(complaints, 1 + len(beside)).to_pylist()[0] == reason


@settings(max_examples=200, deadline=None)
@given(st.lists(st.decimals(0, 5 * 10**12, places=9), min_size=1, max_size=6), st.sampled_from([1, 1000]))
def test_no_digit_of_a_time_is_rounded_by_a_float(times: list[Decimal], ticks: int) -> None:
    values, _ = time_column(pa.array([str(time) for time in times], pa.string()), ticks)
    exact = [math.floor(Fraction(time) * 1_000_000 / ticks) for time in times]
    assert values.to_pylist() == [n if 631152000_000000 <= n < 4102444800_000000 else None for n in exact]
