"""Turn text into numbers, a column at a time, and say why a row cannot be used. raw_times.py reads times.

Arrow's kernels do the work, so that millions of rows are a matter of seconds.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.raw_times import NO_NUMBER, NUMBER, Complaint


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


def reasons(complaints: Sequence[Complaint], rows: int) -> pa.Array:
    """Return the first complaint about each row, string [rows], null where there is none."""
    result = pa.nulls(rows, pa.string())
    for mask, reason in reversed(complaints):
        result = pc.if_else(pc.fill_null(mask, False), reason, result)
    return result
