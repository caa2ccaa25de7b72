"""Text to numbers, against Python's own float()."""

import math

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ingest.values import numbers

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


@settings(max_examples=200)
@given(st.lists(texts, min_size=1, max_size=6))
def test_numbers_are_what_float_reads_whatever_stands_beside_them(column: list[str | None]) -> None:
    values, missing = numbers(pa.array(column, pa.string()))
    expected = [slow_number(text) for text in column]
    assert missing.to_pylist() == [value is None for value in expected]
    assert values.to_pylist() == [None if value is None or math.isnan(value) else value for value in expected]
