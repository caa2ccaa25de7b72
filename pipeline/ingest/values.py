"""Turn text into typed values, a column at a time, and say why a row cannot be used.

Arrow's kernels do the work, so that millions of rows are a matter of seconds.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

IMPOSSIBLE_TIME = "timestamp outside 1990..2100"
FIRST_SECOND = 631_152_000  # 1990-01-01 00:00:00 UTC
LAST_SECOND = 4_102_444_799  # 2099-12-31 23:59:59 UTC
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"

Complaint = tuple[pa.Array, str]  # (bool per row, reason)


def numbers(text: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return (float64 values, bool missing); a value is null where the text is missing or no finite number.

    Table tools write a log's flags as `true` and `false`, which are 1 and 0, and a missing number as `nan`.
    """
    text = pc.utf8_lower(pc.utf8_trim_whitespace(text))
    missing = pc.is_in(text, pa.array(["", "nan", None]))
    text = pc.if_else(missing, None, text)
    try:
        values = pc.cast(text, pa.float64())
    except pa.ArrowInvalid:  # some text is no number: ["true", "x1", "2"] -> ["1", null, "2"], which can be cast
        text = pc.case_when(pc.make_struct(pc.equal(text, "true"), pc.equal(text, "false")), "1", "0", text)
        values = pc.cast(pc.if_else(pc.match_substring_regex(text, NUMBER), text, None), pa.float64())
    return pc.if_else(pc.is_finite(values), values, None), missing


def number_column(text: pa.Array, name: str, *, required: bool) -> tuple[pa.Array, list[Complaint]]:
    """Return (float64 values, null where the text is missing or no number; what is wrong with them)."""
    values, missing = numbers(text)
    wrong = pc.and_(pc.is_null(values), pc.invert(missing))
    return values, [*([(missing, f"{name} is missing")] if required else []), (wrong, f"{name} is not a number")]


def time_column(text: pa.Array, ticks: int) -> tuple[pa.Array, list[Complaint]]:
    """Return (int64 seconds since 1970, rounded down, from `ticks` units a second; what is wrong with them)."""
    values, complaints = number_column(text, "timestamp", required=True)
    seconds = pc.floor(pc.divide(values, ticks))
    possible = pc.and_(pc.greater_equal(seconds, FIRST_SECOND), pc.less_equal(seconds, LAST_SECOND))
    seconds = pc.cast(pc.if_else(possible, seconds, None), pa.int64())
    return seconds, [*complaints, (pc.invert(possible), IMPOSSIBLE_TIME)]


def id_column(text: pa.Array, name: str) -> list[Complaint]:
    """Find raw ids that are missing or have a line break inside, which is the mark of a stray quote before it."""
    missing = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), True)
    return [(missing, f"{name} is missing"), (pc.match_substring(text, "\n"), f"{name} holds a line break")]


def reasons(complaints: Sequence[Complaint], rows: int) -> pa.Array:
    """Return the first complaint about each row, string [rows], null where there is none."""
    result = pa.nulls(rows, pa.string())
    for mask, reason in reversed(complaints):
        result = pc.if_else(pc.fill_null(mask, False), reason, result)
    return result
