"""Cut a file of JSON lines into blocks of bytes, and parse a block. A block ends where a line ends.

Shape legend: R rows of a block (its lines that are not blank), G good ones among them.
"""

import io
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.ingest.lines import (
    BEGINNING,
    DECODER,
    TOO_LONG,
    Fields,
    parse_json,
    text_or_none,
)

BLOCK_BYTES = 1 << 20  # of a block, about


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A `Parsed` holds what a block's lines hold.

    table: the G good rows. line_G: their lines, from 0 in the block. good_R: whether each row is good. size_R: the
    characters of each row. bad: (row, line, reason, text) of each row that is not good. lines: how many the block has,
    blank ones included.
    """

    table: pa.Table
    line_G: np.ndarray
    good_R: np.ndarray
    size_R: np.ndarray
    bad: list[tuple[int, int, str, str]]
    lines: int


def blocks_of(stream: io.BufferedReader, limit: int) -> Iterator[bytes]:
    """Yield whole lines in blocks; of a line that is longer than `limit` bytes, only its beginning."""
    while block := stream.read(BLOCK_BYTES):
        if not block.endswith(b"\n"):
            began = block.rfind(b"\n") + 1
            rest = stream.readline(limit + 1)
            block += rest
            if len(rest) > limit and not rest.endswith(b"\n"):
                while (more := stream.readline(limit + 1)) and not more.endswith(b"\n"):
                    pass
                block = block[: began + limit + 1] + b"\n"
        yield block


def parse_block(block: bytes, limit: int, columns: Sequence[str]) -> Parsed:
    """Parse the lines of a block.

    Args:
        block: whole lines as UTF-8.
        limit: bytes that a line may have, its end included.
        columns: the columns that are wanted.
    """
    texts, whole = _texts_of(block, limit)
    row_lines = [line for line, text in enumerate(texts) if text.strip("\ufeff \t")]
    rows = [texts[line].removeprefix("\ufeff") for line in row_lines]
    size_R = np.fromiter(map(len, rows), np.int64, len(rows))
    lines_R = np.array(row_lines, np.int64)
    good: list[Fields] = []
    bad: list[tuple[int, int, str, str]] = []
    if rows and all(whole) and (values := _parsed_at_once(rows)):
        table = _table(values, columns)
    else:
        for row, (line, text) in enumerate(zip(row_lines, rows, strict=True)):
            try:
                if not whole[line]:
                    raise ValueError(TOO_LONG)
                good.append(parse_json(text, columns))
            except ValueError as error:
                bad.append((row, line, str(error), text))
        table = pa.table({name: pa.array([fields[name] for fields in good], pa.string()) for name in columns})
    good_R = np.ones(len(rows), bool)
    good_R[[row for row, _, _, _ in bad]] = False
    return Parsed(table=table, line_G=lines_R[good_R], good_R=good_R, size_R=size_R, bad=bad, lines=len(texts))


def _texts_of(block: bytes, limit: int) -> tuple[list[str], list[bool]]:
    """Return the lines of a block without their ends, and which are whole; one that is too long is cut."""
    if len(block) <= limit:
        texts = block.decode().split("\n")
        if not texts[-1]:
            texts.pop()
        return [text.rstrip("\r") for text in texts], [True] * len(texts)
    raws = io.BytesIO(block).readlines()
    whole = [len(raw) <= limit for raw in raws]
    texts = [
        (raw.decode() if right else raw[: min(BEGINNING, limit + 1)].decode("utf-8", "replace")).rstrip("\r\n")
        for raw, right in zip(raws, whole, strict=True)
    ]
    return texts, whole


def _parsed_at_once(rows: Sequence[str]) -> list[dict[str, Any]]:
    """Return the objects of all rows, or nothing where a row is not one object.

    The rows become one array, in which a random text stands between two rows. Where each second element of the array is
    this text, and no other is, each row is a value by itself.
    """
    between = secrets.token_hex(16)
    text = f',"{between}",'.join(rows)
    if text.count(between) != len(rows) - 1:
        return []
    try:
        found = DECODER.decode(f"[{text}]")
    except (ValueError, RecursionError):
        return []
    values = found[::2]
    alternating = len(found) == 2 * len(rows) - 1 and found[1::2] == [between] * (len(rows) - 1)
    return values if alternating and set(map(type, values)) == {dict} else []


def _table(values: Sequence[dict[str, Any]], columns: Sequence[str]) -> pa.Table:
    """Return the columns of the objects as text."""
    arrays = {}
    for name in columns:
        column = [value.get(name) for value in values]
        texts = set(map(type, column)) <= {str, NoneType} and "".join(filter(None, column)).isascii()
        arrays[name] = pa.array(column if texts else [text_or_none(value) for value in column], pa.string())
    return pa.table(arrays)
