"""Find how a file of the user is written: its format, and of delimited text the delimiter and the header line."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.errors import UserError
from pipeline.ingest.columns import is_known_name
from pipeline.ingest.content import find_format
from pipeline.ingest.encodings import HEAD_BYTES, complete_lines, decode_head, read_head
from pipeline.ingest.recipes import Format
from pipeline.ingest.sources import RawFile
from pipeline.printing import shown

DELIMITERS = (",", ";", "|", "\t", "::")
SPELLED = {"\\t": "\t", "tab": "\t"}  # how ingest.delimiter can be typed on a command line
HEAD_LINES = 50
AGREEING = 0.9  # share of the lines with as many fields as the first that makes a delimiter credible
SEPARATOR_LINE = re.compile(r'"?sep=([^"\w\s]|\t)"?\s*', re.IGNORECASE)
TYPED_NAME = re.compile(r"(.+):(?:token|float)(?:_seq)?")
DATA = re.compile(r"[+-]?\d+(\.\d*)?([eE]\d+)?|\d{4}-\d\d-\d\d.*")  # a number or a date: no name of a column


def find_dialect(
    file: RawFile,
    mapping: Mapping[str, str],
    *,
    delimiter: str = "",
    header: Sequence[str] | None = (),
    encoding: str = "",
) -> RawFile:
    """Return the file with its kind of format, encoding, delimiter and header, as its content has them.

    Args:
        mapping: `ingest.columns`.
        delimiter: what divides fields; empty: found in the first lines, among `DELIMITERS`.
        header: names of the columns of a file without a header line; empty: the file has such a line. None: the same,
            and no setting could name the columns, as those of an item file.
        encoding: `ingest.encoding`.

    Raises:
        UserError: the first line looks like data and `header` is empty, `header` has another number of names, or ingest
            cannot read such a file.
    """
    file = find_format(file, encoding)
    if file.format.kind != "csv":
        return file
    blank, lines = _first_lines(file)
    if not lines:
        return file
    usual = file.format.delimiter
    announced = SEPARATOR_LINE.fullmatch(lines[0])  # Excel's first line sep=;
    if announced and len(lines) > 1:
        usual = announced[1]
        lines = lines[1:]
        blank += 1
    delimiter = SPELLED.get(delimiter, delimiter) or (usual if announced else _find_delimiter(lines, usual))
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
        form = Format("separated", delimiter, file.format.encoding, names)
        return replace(file, format=form, skip=int(skip) + bool(announced))  # lines that are not blank
    typed = None if header else _without_types(first)
    if typed:
        return replace(
            file, format=replace(file.format, delimiter=delimiter, header=typed, quoted=False), skip=blank + 1
        )
    return replace(file, format=replace(file.format, delimiter=delimiter, header=() if skip else names), skip=blank)


def _without_types(first: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of RecBole's header, user_id:token and timestamp:float; None for any other header."""
    matches = [TYPED_NAME.fullmatch(name.strip()) for name in first]
    return tuple(match[1] for match in matches if match) if all(matches) else None


def split_line(line: str, delimiter: str) -> list[str]:
    """Return the fields of a line; a delimiter of one character does not count inside double quotes."""
    if len(delimiter) > 1:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter), [])


def _first_lines(file: RawFile) -> tuple[int, list[str]]:
    """Return the number of blank lines at the top of the file, and its first lines that are not blank."""
    head = read_head(file)
    lines = complete_lines(decode_head(head, file.format.encoding), cut=len(head) == HEAD_BYTES)
    blank = next((number for number, line in enumerate(lines) if line.strip()), 0)
    return blank, [line for line in lines if line.strip()][:HEAD_LINES]


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
