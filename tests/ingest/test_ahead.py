"""Reading in another thread gives what reading in this one gives."""

import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.ahead import read_ahead
from pipeline.ingest.chunks import Chunk, Reject


def chunk(number: int) -> Chunk:
    return Chunk(pa.table({"n": [str(number)]}), np.array([number]), np.array([number]))


@given(st.lists(st.booleans(), max_size=12), st.booleans())
def test_chunks_and_bad_rows_come_in_their_order(good: list[bool], fails: bool) -> None:
    """Each entry is a chunk or a bad row; the file may end with an error."""

    def read(reject: Reject) -> Iterator[Chunk]:
        for number, is_good in enumerate(good):
            if is_good:
                yield chunk(number)
            else:
                reject(number, "bad", "row")
        if fails:
            raise ValueError("damaged")

    def seen(chunks: Iterator[Chunk], events: list[str]) -> list[str]:
        try:
            events.extend(f"chunk {part.lines[0]}" for part in chunks)
        except ValueError as error:
            events.append(str(error))
        return events

    here: list[str] = []
    there: list[str] = []
    expected = seen(read(lambda line, reason, row: here.append(f"{reason} {line} {row}")), here)
    found = seen(read_ahead(read, lambda line, reason, row: there.append(f"{reason} {line} {row}")), there)
    assert found == expected


def test_a_reader_that_nobody_wants_any_more_stops() -> None:
    closed = threading.Event()

    def read(reject: Reject) -> Iterator[Chunk]:
        try:
            for number in range(10**9):
                reject(number, "bad", "row")
                yield chunk(number)
        finally:
            closed.set()

    before = threading.active_count()
    rows: list[tuple[int, str, str]] = []

    def use() -> None:
        for part in read_ahead(read, lambda *row: rows.append(row)):
            if part.lines[0] == 3:
                raise KeyError("the consumer fails")

    with pytest.raises(KeyError):
        use()
    assert threading.active_count() == before
    assert closed.wait(5)
    assert rows == [(number, "bad", "row") for number in range(4)]
