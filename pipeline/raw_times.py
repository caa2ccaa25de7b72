"""Read times as a log or a user writes them: recognise their form, and turn them into microseconds since 1970.

The forms are numbers since 1970 in seconds, milliseconds, microseconds or nanoseconds, which their size tells apart
because a time lies between 1990 and 2100; ISO 8601 with a zone, without one (then the time is UTC) or as a mere date;
and an order: whole numbers below any time of 1990, such as 0, 1, 2. An order n is stored as n seconds.

Shape legend: R rows of a chunk.
"""

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts import MICROSECONDS

FIRST_SECOND = 631_152_000  # 1990-01-01 00:00:00 UTC
LAST_SECOND = 4_102_444_799  # 2099-12-31 23:59:59 UTC
ORDER_END = 9 * 10**12  # an order is below; its microseconds fit into an int64
IMPOSSIBLE_TIME = "timestamp outside 1990..2100"
IMPOSSIBLE_DATE = "timestamp is a date or an hour that does not exist"
NO_TIME = "timestamp is no number and no ISO 8601 time"
NO_ORDER = "timestamp is no whole number from 0 to 9e12, as an order has"
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
NO_NUMBER = ("", "nan", "null", "none", "\\n", "<na>", None)  # a missing number, in lower case; \N as MySQL writes it
PLAIN_DIGITS = 16  # of a time in microseconds; nanoseconds, which are cut, have more
MISSING = (*NO_NUMBER, "nat")  # a missing time; NaT as pandas writes it
BEYOND = "<value out of range"  # the text that Arrow writes for a timestamp that no calendar reaches

UNITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # form of a number since 1970 -> decimal digits of a second
ORDER = "order"
ZONED = "iso with zone"
LOCAL = "iso without zone"
DATE = "date"
FORMS = (*UNITS, ORDER, ZONED, LOCAL, DATE)
MEANING = {
    "s": "seconds since 1970",
    "ms": "milliseconds since 1970",
    "us": "microseconds since 1970",
    "ns": "nanoseconds since 1970",
    ORDER: "whole numbers of an order",
    ZONED: "ISO 8601 with a zone",
    LOCAL: "ISO 8601 without a zone",
    DATE: "dates without a time of day",
}

PLAIN = r"^(?P<whole>\d{1,18})(?:\.(?P<fraction>\d*))?$"
PLAIN_NS = r"^(?P<whole>\d{1,16})\d{3}(?:\.\d*)?$"  # whole: microseconds
ISO = (
    r"^(?P<year>\d{4})[-/]?(?P<month>\d\d)[-/]?(?P<day>\d\d)"
    r"(?:(?:[Tt]| +)(?P<hour>\d\d):?(?P<minute>\d\d)(?::?(?P<second>\d\d)(?:[.,](?P<fraction>\d+))?)?"
    r" *(?P<zone>[Zz]|UTC|GMT|[+-]\d\d(?::?\d\d)?)?)?$"
)

Complaint = tuple[pa.Array, str]  # (bool per row, reason)


class TimeColumn:
    """A time column reads the times of a log, chunk by chunk. All of them must have one form.

    Args:
        time_unit: `auto` recognises the form. `s`, `ms`, `us`, `ns` and `order` say how numbers are meant; times of
            ISO 8601 are recognised beside a unit, and refused beside `order`.
        form: the form of FORMS that counts; None: the commonest of the first chunk that has one.
    """

    def __init__(self, time_unit: str, form: str | None = None):
        self.time_unit = time_unit
        self.form = form
        self.counts: Counter[str] = Counter()  # form -> rows so far

    @property
    def majority(self) -> str | None:
        """Return the commonest form of all rows so far, of equally common ones the earlier; None if no row has one."""
        return max(self.counts, key=self.counts.__getitem__, default=None)

    def read(self, text: pa.Array) -> tuple[pa.Array, list[Complaint]]:
        """Return (int64 microseconds since 1970, rounded down; what is wrong with the rows).

        The digits are read as they were written and never pass through a float, which would round them. A row without a
        complaint has a time.
        """
        if (plain := self._all_plain(text)) is not None:
            return plain, []
        text = pc.utf8_trim_whitespace(text)
        missing = pc.is_in(pc.utf8_lower(text), pa.array(MISSING))
        text = pc.if_else(missing, None, text)
        is_number = pc.fill_null(pc.match_substring_regex(text, NUMBER), False)
        recognised_R = _forms_of_numbers(text, is_number)
        iso = None
        if pc.any(pc.and_not(pc.is_valid(text), is_number)).as_py():
            iso = pc.extract_regex(pc.if_else(is_number, None, text), ISO)
            recognised_R = np.where(is_number.to_numpy(False), recognised_R, _forms_of_iso(iso))
        forms_R = self._as_set(recognised_R, is_number)
        self._count(forms_R)
        if self.form is None:
            self.form = self.majority
        right = pa.array(forms_R == FORMS.index(self.form) if self.form else np.zeros(len(text), bool))
        chosen = pc.if_else(right, text, None)
        if iso is not None and self.form not in (*UNITS, ORDER):
            times, exists = _from_iso(iso, right)
        else:
            times, exists = _from_numbers(chosen, self.form or "s"), right
        complaints: list[Complaint] = [
            (missing, "timestamp is missing"),
            *self._wrong_forms(forms_R, recognised_R, is_number),
            (pc.and_not(right, exists), IMPOSSIBLE_DATE),
            *self._wrong_unit(recognised_R, pc.and_(right, pc.is_null(times))),
        ]
        beyond = pc.fill_null(pc.starts_with(text, BEYOND), False)
        neither = pc.and_not(pa.array(forms_R < 0), pc.or_(is_number, beyond))
        complaints.append((neither, NO_TIME))
        complaints.append((pc.is_null(times), NO_ORDER if self.form == ORDER else IMPOSSIBLE_TIME))
        return times, complaints

    def _all_plain(self, text: pa.Array) -> pa.Array | None:
        """Return the times where all rows are digits and times of the column's unit, as in most logs; else None."""
        if self.time_unit != "auto" or self.form not in (None, *UNITS) or text.null_count or not len(text):
            return None
        if not pc.all(pc.ascii_is_decimal(text)).as_py() or pc.max(pc.binary_length(text)).as_py() > PLAIN_DIGITS:
            return None
        values = pc.cast(text, pa.int64())
        low, high = pc.min_max(values).values()
        for unit, digits in UNITS.items():
            first, end = FIRST_SECOND * 10**digits, (LAST_SECOND + 1) * 10**digits
            if first <= low.as_py() and high.as_py() < end and self.form in (None, unit):
                self.counts[unit] += len(text)
                self.form = unit
                return pc.multiply(values, MICROSECONDS // 10**digits)
        return None

    def _as_set(self, forms_R: np.ndarray, is_number: pa.Array) -> np.ndarray:
        """Return the forms with all numbers in the form that `time_unit` sets; -1 where a row has none."""
        if self.time_unit == "auto":
            return forms_R
        numbers_R = is_number.to_numpy(False)
        return np.where(numbers_R, FORMS.index(self.time_unit), -1 if self.time_unit == ORDER else forms_R)

    def _count(self, forms_R: np.ndarray) -> None:
        found, first, counts = np.unique(forms_R, return_index=True, return_counts=True)
        for i in np.argsort(first):  # the order of the rows, so that of equally common forms the earlier one counts
            if found[i] >= 0:
                self.counts[FORMS[found[i]]] += int(counts[i])

    def _wrong_forms(self, forms_R: np.ndarray, recognised_R: np.ndarray, is_number: pa.Array) -> list[Complaint]:
        """Find the rows of another form than the column's."""
        complaints: list[Complaint] = []
        if self.time_unit == ORDER:
            iso_R = (recognised_R >= 0) & ~is_number.to_numpy(False)
            complaints.append((pa.array(iso_R), "timestamp is ISO 8601, and ingest.time_unit is order"))
        for code, form in enumerate(FORMS):
            if self.form is None or form == self.form or (form == ORDER and self.form in UNITS):
                continue  # among seconds, 0 is no order but a time of 1970
            other_R = forms_R == code
            if other_R.any():
                reason = f"timestamp is written as {MEANING[form]}, most others as {MEANING[self.form]}"
                complaints.append((pa.array(other_R), reason))
        return complaints

    def _wrong_unit(self, recognised_R: np.ndarray, impossible: pa.Array) -> list[Complaint]:
        """Find the rows that would be times in another unit than the one that is set."""
        if self.time_unit not in UNITS or self.form not in UNITS:
            return []
        impossible_R = impossible.to_numpy(False)
        return [
            (
                pa.array(impossible_R & (recognised_R == FORMS.index(unit))),
                f"{IMPOSSIBLE_TIME} in {self.form}, the set ingest.time_unit, but not in {unit}",
            )
            for unit in UNITS
            if unit != self.form
        ]


def _forms_of_numbers(text: pa.Array, is_number: pa.Array) -> np.ndarray:
    """Return the index into FORMS of each number, by its size; -1 for other rows and for no time and no order."""
    values_R = pc.cast(pc.if_else(is_number, text, None), pa.float64()).to_numpy(zero_copy_only=False)
    forms_R = np.full(len(values_R), -1)
    for unit, digits in UNITS.items():
        possible_R = (values_R >= FIRST_SECOND * 10**digits) & (values_R < (LAST_SECOND + 1) * 10**digits)
        forms_R[possible_R] = FORMS.index(unit)
    forms_R[(values_R >= 0) & (values_R < FIRST_SECOND) & (values_R == np.floor(values_R))] = FORMS.index(ORDER)
    return forms_R


def _forms_of_iso(iso: pa.Array) -> np.ndarray:
    """Return the index into FORMS of each match of ISO; -1 for other rows."""
    matched_R = pc.is_valid(iso).to_numpy(False)
    hour_R = pc.fill_null(pc.not_equal(pc.struct_field(iso, "hour"), ""), False).to_numpy(False)
    zone_R = pc.fill_null(pc.not_equal(pc.struct_field(iso, "zone"), ""), False).to_numpy(False)
    with_hour_R = np.where(zone_R, FORMS.index(ZONED), FORMS.index(LOCAL))
    return np.where(matched_R, np.where(hour_R, with_hour_R, FORMS.index(DATE)), -1)


def first_reasons(complaints: Sequence[Complaint], rows: int) -> list[str | None]:
    """Return the first complaint about each row, None where there is none."""
    result: list[str | None] = [None] * rows
    for mask, reason in reversed(complaints):
        for row in pc.indices_nonzero(pc.fill_null(mask, False)).to_pylist():
            result[row] = reason
    return result


# ------------------------------------------------------------------------------------------------ one form


def _from_numbers(text: pa.Array, form: str) -> pa.Array:
    """Return int64 microseconds, null where the text (a number, or null) is null or outside the possible numbers."""
    digits = UNITS.get(form, 0)
    scale = 1 if form == "ns" else MICROSECONDS // 10**digits  # microseconds in the unit of `whole`
    first, end = (0, ORDER_END) if form == ORDER else (FIRST_SECOND, LAST_SECOND + 1)

    # "1600000000.25" in seconds -> whole 1600000000, fraction "25" -> "250000"
    fraction: pa.Array | pa.Scalar = pa.scalar(0, pa.int64())
    if form != "ns" and pc.all(pc.ascii_is_decimal(text), min_count=0).as_py() and _longest(text) <= 18:
        whole = pc.cast(text, pa.int64())
    else:
        parts = pc.extract_regex(text, PLAIN_NS if form == "ns" else PLAIN)
        whole = pc.cast(pc.struct_field(parts, "whole"), pa.int64())
        if form != "ns":
            fraction = _fraction(pc.struct_field(parts, "fraction"), 6 - digits)
    low, high = first * MICROSECONDS // scale, end * MICROSECONDS // scale
    possible = pc.and_(pc.greater_equal(whole, low), pc.less(whole, high))
    times = pc.add(pc.multiply(pc.if_else(possible, whole, None), scale), fraction)

    # What is written in another way, such as 1.6e9, is rare: one value at a time.
    other = pc.and_(pc.is_valid(text), pc.is_null(whole))
    if pc.any(other).as_py():
        slow = [_one_time(value, digits, first, end) for value in text.filter(other).to_pylist()]
        times = pc.replace_with_mask(times, other, pa.array(slow, pa.int64()))
    if form == ORDER:
        times = pc.if_else(pc.equal(pc.multiply(pc.divide(times, MICROSECONDS), MICROSECONDS), times), times, None)
    return times


def _longest(text: pa.Array) -> int:
    return int(pc.max(pc.utf8_length(text)).as_py() or 0)


def _fraction(text: pa.Array, digits: int) -> pa.Array:
    """Return the digits after a point as int64, cut or filled up to this number of digits: "25" to 6 is 250000."""
    padded = pc.utf8_slice_codeunits(pc.utf8_rpad(text, digits + 1, "0"), 0, digits)
    return pc.cast(pc.if_else(pc.equal(padded, ""), "0", padded), pa.int64())


def _one_time(text: str, digits: int, first: int, end: int) -> int | None:
    try:
        value = Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        return None
    if not first * 10**digits <= value < end * 10**digits:
        return None
    return int(value * MICROSECONDS // 10**digits)


def _from_iso(iso: pa.Array, right: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return (int64 microseconds since 1970, whether date and time of day exist), of the rows that are `right`.

    A time is null where a row is not right, does not exist, or lies outside the possible times.
    """
    right_R = right.to_numpy(False)
    year_R, month_R, day_R, hour_R, minute_R, second_R = (
        _whole(iso, name) for name in ("year", "month", "day", "hour", "minute", "second")
    )
    offsets_R, zones_R = _offsets(pc.struct_field(iso, "zone"))
    fraction_R = pc.fill_null(_fraction(pc.struct_field(iso, "fraction"), 6), 0).to_numpy(zero_copy_only=False)
    months_R = (12 * (year_R - 1970) + np.clip(month_R - 1, 0, 11)).astype("datetime64[M]")
    first_R = months_R.astype("datetime64[D]").astype(np.int64)  # day of 1970 on which the month begins
    length_R = (months_R + 1).astype("datetime64[D]").astype(np.int64) - first_R
    date_R = (month_R >= 1) & (month_R <= 12) & (day_R >= 1) & (day_R <= length_R)
    exists_R = date_R & (hour_R < 24) & (minute_R < 60) & (second_R < 60) & zones_R
    seconds_R = 86_400 * (first_R + day_R - 1) + 3600 * hour_R + 60 * minute_R + second_R - offsets_R
    possible_R = right_R & exists_R & (seconds_R >= FIRST_SECOND) & (seconds_R <= LAST_SECOND)
    return pa.array(seconds_R * MICROSECONDS + fraction_R, mask=~possible_R), pa.array(exists_R)


def _whole(iso: pa.Array, name: str) -> np.ndarray:
    """Return a field of matches of ISO as int64, 0 where it is absent."""
    text = pc.struct_field(iso, name)
    text = pc.if_else(pc.fill_null(pc.equal(text, ""), True), "0", text)
    return np.asarray(pc.cast(text, pa.int64()).to_numpy(zero_copy_only=False))


def _offsets(zones: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return (seconds that each zone is ahead of UTC, whether there is such a zone); Z, UTC, GMT and none are 0."""
    encoded = pc.dictionary_encode(pc.fill_null(zones, ""))
    seconds, exist = [], []
    for zone in encoded.dictionary.to_pylist():
        digits = zone[1:].replace(":", "") if zone[:1] in ("+", "-") else ""
        hours, minutes = int(digits[:2] or 0), int(digits[2:] or 0)
        seconds.append((3600 * hours + 60 * minutes) * (-1 if zone[:1] == "-" else 1))
        exist.append(hours < 24 and minutes < 60)
    rows_R = encoded.indices.to_numpy(zero_copy_only=False)
    return np.array(seconds, np.int64)[rows_R], np.array(exist, bool)[rows_R]
