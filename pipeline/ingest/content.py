"""Find the format of a user's file by its content: Parquet, JSON, Python literals, or else text with a delimiter."""

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.errors import UserError
from pipeline.ingest.columns import is_known_name
from pipeline.ingest.encodings import HEAD_BYTES, complete_lines, decode_head, find_encoding, read_head
from pipeline.ingest.recipes import CSV, JSON_STREAM, JSONL, LITERAL, PARQUET, Format
from pipeline.ingest.sources import RawFile

JUDGED_LINES = 20
OTHERS = {  # how files begin that ingest cannot read
    b"ARROW1\x00\x00": "an Arrow (Feather) file",
    b"ORC\n": "an ORC file",
    b"ORC\x00": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"SQLite format 3\x00": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "a document of an old office program",
    b"%PDF": "a PDF document",
    b"\x80\x04\x95": "a pickle",
    b"\x80\x05\x95": "a pickle",
}
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
LIST_IN_OBJECT = re.compile(r'\{[^{}\[\]]*?"([^"]{0,200})"\s*:\s*[\[{]')  # {"count": 2, "data": [


def find_format(file: RawFile, encoding: str = "") -> RawFile:
    """Return the file with the kind of format and the encoding that its content has.

    Args:
        encoding: `ingest.encoding`.

    Raises:
        UserError: the file is of a format that ingest cannot read, or holds a single object instead of rows.
    """
    head = read_head(file)
    if head.startswith(b"PAR1"):
        return replace(file, format=PARQUET)
    what = next((what for magic, what in OTHERS.items() if head.startswith(magic)), None)
    if what or head[257:262] == b"ustar":
        raise UserError(
            f"{file.name} is {what or 'a tar archive'}",
            "ingest reads CSV and other delimited text, JSON and Parquet",
            "write its table as Parquet or CSV" if what else "unpack it (`tar xf FILE`) and name the files in it",
        )
    if file.format.kind == "parquet":
        return file  # the reader says what is wrong with it
    found = find_encoding(file, head, encoding)
    if found == "utf-8" and len(CONTROL.findall(head)) > 0.01 * len(head) and not _is_utf_8(head):
        raise UserError(
            f"{file.name} is no text file",
            "many of its bytes are control characters, and it is not UTF-8",
            "ingest reads CSV and other delimited text, JSON and Parquet; leave the file out, or unpack it",
        )
    form = _json_format(file, decode_head(head, found), cut=len(head) == HEAD_BYTES) or file.format
    return replace(file, format=replace(form, encoding=found))


def _is_utf_8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # the last character may be cut
    return True


def _json_format(file: RawFile, text: str, *, cut: bool) -> Format | None:
    """Return the format of a file that begins as JSON or Python literals do; None for any other file."""
    text = text.lstrip()
    if re.match(r"\[\s*\{u?'", text):
        raise UserError(
            f"{file.name} is one Python list",
            "Python literals are read only as one dict per line",
            "write the list as JSON: json.dump(ast.literal_eval(text), file)",
        )
    typed = file.format.kind == "jsonl"
    lines = [line for line in complete_lines(text, cut=cut) if line.strip()]
    if re.match(r"\[\s*\{", text) or (typed and text.startswith("[") and not _all_lists(lines)):
        return JSON_STREAM
    if typed and sum(is_known_name(name) for name in re.split(r"[,;|\t]|::", lines[0] if lines else "")) > 1:
        return CSV
    if not text.startswith("{"):
        return None
    objects = [value for line in lines[:JUDGED_LINES] if isinstance(value := _json(line), dict)]
    literals = sum(_is_literal(line) for line in lines[:JUDGED_LINES])
    if literals > len(objects):
        return LITERAL
    if objects:
        if len(lines) == 1 and not cut:
            _refuse_object(file, objects[0])
        return JSONL
    return _pretty_format(file, text, cut=cut)


def _all_lists(lines: Sequence[str]) -> bool:
    """Tell whether there are several lines and each of the first ones is a JSON list."""
    return len(lines) > 1 and all(isinstance(_json(line), list) for line in lines[:JUDGED_LINES])


def _pretty_format(file: RawFile, text: str, *, cut: bool) -> Format | None:
    """Return the format of objects that span lines, as `jq .` writes them; None if the text does not begin with one."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        if cut and (match := LIST_IN_OBJECT.match(text)):
            raise _one_object(file, match[1]) from None
        return None
    if not isinstance(value, dict) or "\n" not in text[:end].strip():
        return None
    if not text[end:].strip() and not cut:
        _refuse_object(file, value)
    return JSON_STREAM


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_literal(line: str) -> bool:
    """Tell whether a line is a Python dict and no JSON, by its first bytes where it is long."""
    if not re.match(r"\s*\{\s*u?'", line):
        return False
    try:
        return isinstance(ast.literal_eval(line.strip()), dict)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _refuse_object(file: RawFile, value: dict[str, Any]) -> None:
    """Refuse a file that is one object whose rows lie in a list or in columns inside it."""
    inner = [name for name, part in value.items() if isinstance(part, list | dict)]
    plain = [name for name in value if name not in inner]
    if inner and not any(is_known_name(name) for name in plain):
        raise _one_object(file, inner[0])


def _one_object(file: RawFile, name: str) -> UserError:
    return UserError(
        f"{file.name} is one JSON object, not one object per row",
        f"its rows probably lie inside it, in '{name[:40]}'",
        f"write the rows alone: jq -c '.\"{name[:40]}\"[]' OLD > NEW; with pandas "
        "to_json(NEW, orient='records', lines=True)",
    )
