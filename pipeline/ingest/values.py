"""Turn text into typed values, a column at a time, and say why a row cannot be used.

Arrow's kernels do the work, so that millions of rows are a matter of seconds.
"""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts import MICROSECONDS

IMPOSSIBLE_TIME = "timestamp outside 1990..2100"
FIRST_SECOND = 631_152_000  # 1990-01-01 00:00:00 UTC
LAST_SECOND = 4_102_444_799  # 2099-12-31 23:59:59 UTC
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
PLAIN_TIME = r"^(?P<whole>\d{1,18})(?:\.(?P<fraction>\d*))?$"

NO_NUMBER = ("", "nan", "null", "none", "\\n", "<na>", None)  # a missing number, in lower case; \N as MySQL writes it

Complaint = tuple[pa.Array, str]  # (bool per row, reason)


def numbers(text: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return (float64 values, bool missing); a value is null where the text is missing or no finite number.

    Table tools write a log's flags as `true` and `false`, which are 1 and 0, and a missing number
    as `nan` or another word of `NO_NUMBER`.
    """
    text = pc.utf8_lower(pc.utf8_trim_whitespace(text))
    missing = pc.is_in(text, pa.array(NO_NUMBER))
    text = pc.if_else(missing, None, text)
    try:
        values = pc.cast(text, pa.float64())
    except pa.ArrowInvalid:  # some text is no number: ["true", "x1", "2"] -> ["1", null, "2"], which can be cast
        text = pc.case_when(pc.make_struct(pc.equal(text, "true"), pc.equal(text, "false")), "1", "0", text)
        values = pc.cast(pc.if_else(pc.match_substring_regex(text, NUMBER), text, None), pa.float64())
    return pc.if_else(pc.is_finite(values), values, None), missing


def number_column(text: pa.Array, name: str, *, required: bool) -> tuple[pa.Array, list[Complaint], pa.Array]:
    """Return float64 values, what is wrong with the rows, and which values were no number although a row may lack them.

    A value is null where the text is missing or no number. Only a required column has complaints: where a value is
    optional, a text that is no number counts as a missing value (bool per row).
    """
    values, missing = numbers(text)
    wrong = pc.and_(pc.is_null(values), pc.invert(missing))
    if required:
        return values, [(missing, f"{name} is missing"), (wrong, f"{name} is not a number")], pc.and_not(wrong, wrong)
    return values, [], wrong


def time_column(text: pa.Array, ticks: int) -> tuple[pa.Array, list[Complaint]]:
    """Return (int64 microseconds since 1970, rounded down, from `ticks` units a second; what is wrong with them).

    The digits are read as they were written and never pass through a float, which would round them.
    """
    text = pc.utf8_trim_whitespace(text)
    missing = pc.is_in(pc.utf8_lower(text), pa.array(NO_NUMBER))
    wrong = pc.and_(pc.invert(missing), pc.invert(pc.fill_null(pc.match_substring_regex(text, NUMBER), False)))
    times = _microseconds(pc.if_else(pc.or_(missing, wrong), None, text), ticks)
    return times, [
        (missing, "timestamp is missing"),
        (wrong, "timestamp is not a number"),
        (pc.is_null(times), IMPOSSIBLE_TIME),
    ]


def _microseconds(text: pa.Array, ticks: int) -> pa.Array:
    """Return int64 microseconds, null where the text (a number, or null) is null or lies outside the possible times."""
    scale = MICROSECONDS // ticks
    digits = len(str(scale)) - 1  # of a fraction that count: of a second 6, of a millisecond 3

    # "1600000000.25" in seconds -> whole 1600000000, fraction "25" -> "250000"
    if pc.all(pc.ascii_is_decimal(text), min_count=0).as_py() and _longest(text) <= 18:
        whole, fraction = pc.cast(text, pa.int64()), pa.scalar(0, pa.int64())
    else:
        parts = pc.extract_regex(text, PLAIN_TIME)
        whole = pc.cast(pc.struct_field(parts, "whole"), pa.int64())
        padded = pc.utf8_slice_codeunits(pc.utf8_rpad(pc.struct_field(parts, "fraction"), digits + 1, "0"), 0, digits)
        fraction = pc.cast(pc.if_else(pc.equal(padded, ""), "0", padded), pa.int64())
    possible = pc.and_(pc.greater_equal(whole, FIRST_SECOND * ticks), pc.less(whole, (LAST_SECOND + 1) * ticks))
    times = pc.add(pc.multiply(pc.if_else(possible, whole, None), scale), fraction)

    # What is written in another way, such as 1.6e9, is rare: one value at a time.
    other = pc.and_(pc.is_valid(text), pc.is_null(whole))
    if pc.any(other).as_py():
        slow = [_one_time(value, ticks) for value in text.filter(other).to_pylist()]
        times = pc.replace_with_mask(times, other, pa.array(slow, pa.int64()))
    return times


def _longest(text: pa.Array) -> int:
    return int(pc.max(pc.utf8_length(text)).as_py() or 0)


def _one_time(text: str, ticks: int) -> int | None:
    try:
        value = Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        return None
    if not FIRST_SECOND * ticks <= value < (LAST_SECOND + 1) * ticks:
        return None
    return int(value * (MICROSECONDS // ticks) // 1)


def reasons(complaints: Sequence[Complaint], rows: int) -> pa.Array:
    """Return the first complaint about each row, string [rows], null where there is none."""
    result = pa.nulls(rows, pa.string())
    for mask, reason in reversed(complaints):
        result = pc.if_else(pc.fill_null(mask, False), reason, result)
    return result
