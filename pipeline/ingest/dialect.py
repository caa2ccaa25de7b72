"""Find how a CSV or TSV file of the user is written: what divides its fields, and whether it has a header line."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.errors import UserError
from pipeline.ingest.chunks import open_binary
from pipeline.ingest.columns import is_known_name
from pipeline.ingest.recipes import Format
from pipeline.ingest.sources import RawFile
from pipeline.printing import shown

DELIMITERS = (",", ";", "|", "\t", "::")
SPELLED = {"\\t": "\t", "tab": "\t"}  # how ingest.delimiter can be typed on a command line
HEAD_BYTES = 64 << 10
HEAD_LINES = 50
AGREEING = 0.9  # share of the lines with as many fields as the first that makes a delimiter credible
DATA = re.compile(r"[+-]?\d+(\.\d*)?([eE]\d+)?|\d{4}-\d\d-\d\d.*")  # a number or a date: no name of a column


def find_dialect(
    file: RawFile, mapping: Mapping[str, str], *, delimiter: str = "", header: Sequence[str] | None = ()
) -> RawFile:
    """Return the file with its delimiter and header in `format`; other formats than CSV and TSV stay as they are.

    Args:
        mapping: `ingest.columns`.
        delimiter: what divides fields; empty: found in the first lines, among `DELIMITERS`.
        header: names of the columns of a file without a header line; empty: the file has such a line. None: the same,
            and no setting could name the columns, as those of an item file.

    Raises:
        UserError: the first line looks like data and `header` is empty, or `header` has another number of names.
    """
    if file.format.kind != "csv":
        return file
    lines = _first_lines(file)
    if not lines:
        return file
    usual = file.format.delimiter
    delimiter = SPELLED.get(delimiter, delimiter) or _find_delimiter(lines, usual)
    first = split_line(lines[0], delimiter)
    if header and len(first) != len(header):
        raise UserError(
            f"{file.name} has {len(first)} columns, ingest.header has {len(header)} names",
            f"the first line is {shown(lines[0][:80])}",
            "name every column of the file in ingest.header, in order, or set ingest.delimiter",
        )
    if not header and _looks_like_data(first, mapping):
        raise UserError(
            f"{file.name} has no header line",
            f"the first line looks like data: {shown(lines[0][:80])}",
            "write a header line into the file, such as item,title"
            if header is None
            else f"name its {len(first)} columns in order, such as ingest.header: "
            f"[{', '.join(_example(len(first)))}], or write a header line into the file",
        )
    names = tuple(header or first)
    skip = not header or list(header) == first  # the first line is no row
    if len(delimiter) > 1:
        return replace(file, format=Format("separated", delimiter, header=names), skip=int(skip))
    return replace(file, format=replace(file.format, delimiter=delimiter, header=() if skip else names))


def split_line(line: str, delimiter: str) -> list[str]:
    """Return the fields of a line; a delimiter of one character does not count inside double quotes."""
    if len(delimiter) > 1:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter), [])


def _first_lines(file: RawFile) -> list[str]:
    """Return the file's first lines that are not blank; none of a file that cannot be read, which the reader names."""
    try:
        with open_binary(file) as stream:
            head = stream.read(HEAD_BYTES)
    except (EOFError, OSError):
        return []
    lines = head.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    if len(head) == HEAD_BYTES and len(lines) > 1:
        lines.pop()  # it was cut
    return [line for line in lines if line.strip()][:HEAD_LINES]


def _find_delimiter(lines: Sequence[str], usual: str) -> str:
    """Return the delimiter that divides the first line into most fields and most other lines into as many."""
    # u1;i1;4,5;1600 and u2;i1;3,5;1700 have 4 fields by ";" and 2 by ",": it is ";".
    found = []
    for delimiter in (usual, *DELIMITERS):
        try:
            widths = [len(split_line(line, delimiter)) for line in lines]
        except csv.Error:
            continue
        if widths[0] > 1:
            share = sum(width == widths[0] for width in widths) / len(widths)
            found.append((share >= AGREEING, widths[0], delimiter))
    best = max(found, key=lambda entry: entry[:2], default=None)  # of equals the first, which is the usual one
    return best[2] if best else usual


def _looks_like_data(first: Sequence[str], mapping: Mapping[str, str]) -> bool:
    names = [name.strip() for name in first]
    numbered = [name for name in names if name]
    if numbered in ([str(n) for n in range(len(numbered))], [str(n + 1) for n in range(len(numbered))]):
        return False  # pandas numbers columns without a name
    mapped = [mapping[role] for role in ("user", "item", "timestamp") if mapping.get(role)]
    if mapped and all(name in names and not DATA.fullmatch(name) for name in mapped):
        return False
    return any(DATA.fullmatch(name) for name in names) and not any(is_known_name(name) for name in names)


def _example(width: int) -> list[str]:
    usual = ["user", "item", "timestamp"] if width == 3 else ["user", "item", "rating", "timestamp"]
    return [*usual[:width], *(f"column{n}" for n in range(len(usual) + 1, width + 1))]
