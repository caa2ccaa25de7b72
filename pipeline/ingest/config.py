"""The settings of the stage ingest: section `ingest` of params.yaml."""

import codecs
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.actions import MOST_COLUMNS, Edge, check_edges
from pipeline.knobs import Between, Name, Ratio, short

MEMORY = re.compile(r"\d{1,9}(\.\d{1,3})? ?([KMGT]i?B|%)", re.IGNORECASE)  # what DuckDB reads

ENCODING_SAMPLE = "user,item\t1\r\n"
Wanted = str | int | float | bool  # a text of the log, as YAML may read it
COLUMNS = ("user", "item", "timestamp", "title", "categories", "description", "image")  # keys of ingest.columns


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Say where the raw log lies and how it is cleaned."""

    path: Name  # a file or a folder, which DVC can depend on; for the demo the one with scenario.yaml
    files: str  # custom: a glob inside that folder, such as "*.csv"; empty: the folder's interactions.*
    encoding: str  # custom: of text files that are not UTF-8, a codec of Python; empty: UTF-8, or recognised UTF-16
    delimiter: str  # custom: what divides the fields of a CSV or TSV log; empty: found in its first lines
    engine: Literal["duckdb", "spark"]
    memory_limit: str  # DuckDB spills to disk above it
    # every user and item has at least this many interactions
    k_core: Annotated[int, Between(0, 1_000_000)] | Literal["recipe"]
    max_reject_rate: Ratio  # share of bad rows above which the stage fails
    repeats: Literal["first", "last", "keep"]  # which interactions of one user with one item count
    unknown_items: Literal["reject", "keep"]  # interactions whose item the item file does not list
    time_unit: Literal["auto", "s", "ms", "us", "ns", "order"]  # of times that are numbers; auto: recognised
    columns: dict[str, str]  # our name -> the log's name; one of `COLUMNS` that is empty is recognised
    header: tuple[str, ...]  # custom: column names of a CSV or TSV log that has no header line
    minimum: dict[str, float]  # action column -> least value that counts as positive
    actions: dict[str, Edge | tuple[Edge, ...]]  # action column -> the edges of its values; empty: no exposures
    # a longer line, or value of a Parquet file, is refused: the limit on the memory that it takes
    max_line_bytes: Annotated[int, Between(1 << 16, 1 << 30)]
    max_file_bytes: Annotated[int, Between(1 << 16, 10**15)]  # of a download, and of a packed file unpacked
    where: dict[str, Wanted | tuple[Wanted, ...]]  # column of the log -> the texts of the rows that are wanted
    null_words: tuple[str, ...]  # texts that are no id, upper and lower case alike; the empty text is none either

    def __post_init__(self) -> None:
        if self.encoding:
            usual_encoding(self.encoding)
        if not MEMORY.fullmatch(self.memory_limit):
            raise ValueError(f"ingest.memory_limit is {short(self.memory_limit)}, expected a size such as 4GB or 512MB")
        if '"' in self.delimiter or "\n" in self.delimiter:
            raise ValueError("ingest.delimiter must be a text such as ; or :: and without quotes and line breaks")
        if len(set(self.header)) < len(self.header):
            raise ValueError("ingest.header must name every column once")
        if len(self.actions) > MOST_COLUMNS:
            raise ValueError(f"ingest.actions names {len(self.actions)} columns, expected at most {MOST_COLUMNS}")
        for name, edges in self.action_edges.items():
            check_edges(name, edges)
        if empty := [name for name, texts in self.filters.items() if not texts]:
            raise ValueError(f"ingest.where.{empty[0]} names no value, so that no row would be wanted")

    @property
    def mapping(self) -> dict[str, str]:
        """Return our name -> the log's name, of the columns that the user names.

        An empty name is left out if it belongs to one of `COLUMNS`: that column is recognised. Under another name it
        stays, and leaves a numeric column out.
        """
        return {ours: theirs for ours, theirs in self.columns.items() if theirs or ours not in COLUMNS}

    @property
    def action_edges(self) -> dict[str, tuple[Edge, ...]]:
        """Return action column -> its edges, of which `actions` may give a single one without a list."""
        return {name: edges if isinstance(edges, tuple) else (edges,) for name, edges in self.actions.items()}

    @property
    def filters(self) -> dict[str, tuple[str, ...]]:
        """Return column of the log -> the texts of the rows that are wanted; a flag is the text true or false."""
        lists = {name: value if isinstance(value, tuple) else (value,) for name, value in self.where.items()}
        return {name: tuple(_text(value) for value in values) for name, values in lists.items()}


def usual_encoding(name: str) -> str:
    """Return the usual name of a text encoding of Python.

    Raises:
        ValueError: there is no such encoding, or it is none for tables.
    """
    try:
        usual = codecs.lookup(name).name
        if ENCODING_SAMPLE.encode(usual).decode(usual) == ENCODING_SAMPLE:
            return usual
    except (LookupError, ValueError, TypeError):
        pass
    raise ValueError(
        f"ingest.encoding is {name[:40]!r}, which is no text encoding of Python, such as cp1252 or gb18030"
    )


def _text(value: Wanted) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
