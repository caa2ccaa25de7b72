"""Read JSON objects, Python literals, and lines whose fields are divided by a long separator."""

import ast
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.ingest.chunks import Chunk, Reject, check_columns, wrong_width
from pipeline.ingest.encodings import open_utf8
from pipeline.ingest.json_stream import BROKEN, json_values
from pipeline.ingest.sources import RawFile

CHUNK_ROWS = 20_000
CHUNK_CHARACTERS = 64 << 20  # of the lines of a chunk, at least
TOO_LONG = "longer than ingest.max_line_bytes"
BEGINNING = 1000  # bytes of a line that is too long, for the rejects
DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)  # json.loads makes one for each line
MAX_LITERAL = 200_000  # characters; the limit on the memory that parsing a hostile line takes
Fields = dict[str, str | None]
Line = tuple[int, str, bool]  # (line, text, whole), as `_text_lines` gives them
ParsedRow = tuple[int, str, Fields | ValueError]  # (line, text, the fields or what is wrong with the text)


def read_lines(file: RawFile, reject: Reject, columns: Sequence[str] | None) -> Iterator[Chunk]:
    """Yield the rows of a file of lines or of JSON; `readers.read_chunks` documents the arguments."""
    if file.format.kind == "json_stream":
        yield from _chunks(file, _stream_rows(file, columns), reject, columns)
        return
    lines = itertools.islice(_text_lines(file), file.skip, None)
    yield from _chunks(file, _line_rows(file, lines, columns), reject, columns)


def _chunks(
    file: RawFile, found: Iterator[ParsedRow], reject: Reject, columns: Sequence[str] | None
) -> Iterator[Chunk]:
    waiting = _Waiting(file, reject, columns)
    for row in found:
        if chunk := waiting.add(row):
            yield chunk
    if waiting.rows:
        yield waiting.take()


class _Waiting:
    """The good rows of the next chunk, as (line, record, fields); bad rows go to `reject`."""

    def __init__(self, file: RawFile, reject: Reject, columns: Sequence[str] | None):
        self.file = file
        self.reject = reject
        self.columns = columns
        self.rows: list[tuple[int, int, Fields]] = []
        self.size = 0  # characters of these rows, and of bad ones between them
        self.record = 0  # number of the next row in the file

    def add(self, row: ParsedRow) -> Chunk | None:
        """Add a row, and return the chunk that is full with it."""
        line, text, fields = row
        if isinstance(fields, ValueError):
            self.reject(line, str(fields), text)
        else:
            self.rows.append((line, self.record, fields))
        self.record += 1
        self.size += len(text)
        full = self.rows and (len(self.rows) == CHUNK_ROWS or self.size >= CHUNK_CHARACTERS)
        return self.take() if full else None

    def take(self) -> Chunk:
        chunk = _chunk(self.file, self.rows, self.columns)
        self.rows, self.size = [], 0
        return chunk


def _line_rows(file: RawFile, lines: Iterable[Line], columns: Sequence[str] | None) -> Iterator[ParsedRow]:
    parse = {"jsonl": parse_json, "literal": parse_literal, "separated": _field_parser(file)}[file.format.kind]
    for line, text, whole in lines:
        try:
            if not whole:
                raise ValueError(TOO_LONG)
            yield line, text, parse(text, columns)
        except ValueError as error:
            yield line, text, error


def _stream_rows(file: RawFile, columns: Sequence[str] | None) -> Iterator[ParsedRow]:
    with io.TextIOWrapper(open_utf8(file), "utf-8", newline="\n") as stream:
        for line, text, value in json_values(stream, file.name, file.limits.line_bytes):
            try:
                if value is BROKEN:
                    raise ValueError("broken JSON")
                yield line, text, _texts(value, columns, "a JSON object")
            except ValueError as error:
                yield line, text, error


def _chunk(file: RawFile, rows: Sequence[tuple[int, int, Fields]], columns: Sequence[str] | None) -> Chunk:
    lines, records, fields = zip(*rows, strict=True)
    names = columns if columns is not None else list(dict.fromkeys(name for row in fields for name in row))
    check_columns(file, len(names))
    table = pa.table({name: pa.array([row.get(name) for row in fields], pa.string()) for name in names})
    return Chunk(table, np.array(lines, np.int64), np.array(records, np.int64))


def _text_lines(file: RawFile) -> Iterator[Line]:
    """Yield (line, text, whole) of each line that is not blank; a line that is too long is not whole, and is cut."""
    with open_utf8(file) as stream:
        for line, (raw, whole) in enumerate(_raw_lines(stream, file.limits.line_bytes), 1):
            text = raw.decode("utf-8", "strict" if whole else "replace").rstrip("\r\n")
            if text.strip("\ufeff \t"):
                yield line, text.removeprefix("\ufeff"), whole


def _raw_lines(stream: io.BufferedReader, limit: int) -> Iterator[tuple[bytes, bool]]:
    """Yield (line, True), or (beginning, False) of a line of more than `limit` bytes, in bounded memory."""
    while raw := stream.readline(limit + 1):
        beginning, whole = raw, len(raw) <= limit
        while len(raw) > limit and not raw.endswith(b"\n"):
            raw = stream.readline(limit + 1)
        yield (beginning, True) if whole else (beginning[:BEGINNING], False)


def parse_json(text: str, columns: Sequence[str] | None = None) -> Fields:
    """Return the fields of a JSON object as text by name; numbers are as they were written, digit by digit.

    Raises:
        ValueError: the line is broken JSON, or no object.
    """
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError):
        raise ValueError("broken JSON") from None
    return _texts(value, columns, "a JSON object")


def parse_literal(text: str, columns: Sequence[str] | None = None) -> Fields:
    """Return the fields of a Python dict literal as text by name; the line is never evaluated as code.

    Raises:
        ValueError: the literal is broken or too long, or no dict.
    """
    if len(text) > MAX_LITERAL:
        raise ValueError(f"longer than {MAX_LITERAL:,} characters")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("broken Python literal") from None
    return _texts(value, columns, "a Python dict")


def _texts(value: Any, columns: Sequence[str] | None, kind: str) -> Fields:
    if not isinstance(value, dict):
        raise ValueError(f"not {kind}")
    if columns is not None:  # a text that cannot be read is a missing value: it costs the row only what it must have
        return {name: text_or_none(value.get(name)) for name in columns}
    return {as_text(name) or "": as_text(field) for name, field in value.items()}


def text_or_none(value: Any) -> str | None:
    """Return a field as `as_text` does, None where it has no text or its text cannot be read."""
    try:
        return as_text(value)
    except ValueError:
        return None


def as_text(value: Any) -> str | None:
    """Return a field as text: `["Beauty", "Nails"]` is a path, `Beauty > Nails`; a list of paths is joined by `; `.

    A value that has no text, such as a nested object or a list in a list in a list, gives None.

    Raises:
        ValueError: an escape such as \\ud800 stands for half a character.
    """
    if not isinstance(value, list | tuple):
        return _scalar_text(value)
    nested = any(isinstance(part, list | tuple) for part in value)
    paths = [part if isinstance(part, list | tuple) else [part] for part in value] if nested else [value]
    return "; ".join(" > ".join(text for text in map(_scalar_text, path) if text) for path in paths)


def _scalar_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value if value.isascii() else _whole_characters(value)
    if isinstance(value, bool):
        return str(int(value))
    return str(value) if isinstance(value, int | float) else None


def _whole_characters(text: str) -> str:
    """Join the surrogate pairs that Python 2 wrote for characters beyond 16 bits."""
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise ValueError("broken Unicode escape") from None


def _field_parser(file: RawFile) -> Callable[[str, Sequence[str] | None], Fields]:
    header = file.format.header

    def parse(text: str, columns: Sequence[str] | None) -> Fields:
        del columns  # a row has all fields of the header; the chunk takes the columns that are wanted
        fields = text.split(file.format.delimiter)
        if len(fields) != len(header):
            raise ValueError(wrong_width(len(fields), len(header)))
        return dict(zip(header, fields, strict=True))

    return parse
