"""The settings of the stage ingest: section `ingest` of params.yaml."""

import codecs
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.actions import MOST_COLUMNS, Edge, check_edges
from pipeline.errors import nearest
from pipeline.knobs import Between, Name, Ratio, short
from pipeline.printing import shown

MEMORY = re.compile(r"\d{1,9}(\.\d{1,3})? ?([KMGT]i?B|%)", re.IGNORECASE)  # what DuckDB reads

ENCODING_SAMPLE = "user,item\t1\r\n"
Wanted = str | int | float | bool  # a text of the log, as YAML may read it
ROLES = ("user", "item", "timestamp")  # the columns that every log has
COLUMNS = (*ROLES, "title", "categories", "description", "image")  # keys of ingest.columns
RESERVED = ("user_id", "item_id", "position", "source_row")  # columns of the output, names that no action can have
DEMO_ACTIONS = ("click", "watch_seconds", "like", "share")
PUBLISHED_ACTIONS = ("rating",)  # of every recipe


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
        self._check_names()
        if empty := [name for name, texts in self.filters.items() if not texts]:
            raise ValueError(f"ingest.where.{empty[0]} names no value, so that no row would be wanted")

    def _check_names(self) -> None:
        """Refuse names that no log can give a meaning to, so that no stage finds them when its outputs are gone."""
        if reserved := [ours for ours in self.mapping if ours not in COLUMNS and not may_be_action(ours)]:
            raise ValueError(
                f"ingest.columns names {short(reserved[0])}, which is a name that ingest reserves: write another name "
                "there for your column"
            )
        of_log = [name for name in self.mapping if name in ROLES or name not in COLUMNS]
        of_items = [name for name in self.mapping if name in COLUMNS and (name == "item" or name not in ROLES)]
        for names in (of_log, of_items):
            first: dict[str, str] = {}
            for ours in names:
                theirs = self.mapping[ours]
                if theirs and first.setdefault(theirs, ours) != ours:
                    raise ValueError(
                        f"ingest.columns reads the column {short(theirs)} as {short(first[theirs])} and as "
                        f"{short(ours)}, and one column can have one meaning only: give one of them another column"
                    )
        for setting, name in self._named_actions():
            if name in ROLES or not may_be_action(name):
                what = f"the column of the {name}s" if name in ROLES else "a name that ingest reserves"
                raise ValueError(
                    f"ingest.{setting} names {short(name)}, which is {what} and no action: name a column of numbers "
                    "that say what users did, such as rating or click"
                )
            if name in self.mapping and not self.mapping[name]:
                raise ValueError(
                    f"ingest.{setting} names {short(name)}, which ingest.columns leaves out by an empty name: take it "
                    f"out of ingest.{setting}, or out of ingest.columns"
                )

    def check_actions_of(self, dataset: str) -> None:
        """Check `minimum` and `actions` against the log of a dataset whose columns are known without reading it.

        Raises:
            ValueError: they name an action that this log does not have.
        """
        if dataset == "custom":
            return
        of_log = DEMO_ACTIONS if dataset == "demo" else PUBLISHED_ACTIONS
        known = [*of_log, *(name for name in self.mapping if name not in COLUMNS)]
        for setting, name in self._named_actions():
            if name not in known:
                raise ValueError(
                    f"ingest.{setting} names {short(name)}, which is no action that the log of {dataset} is known to "
                    f"have: {nearest(name, known)}; or name its column: +ingest.columns.{shown(name)}=NAME"
                )

    def _named_actions(self) -> list[tuple[str, str]]:
        """Return (setting, name) of each action that `minimum` or `actions` names."""
        return [*(("minimum", name) for name in self.minimum), *(("actions", name) for name in self.actions)]

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


def may_be_action(name: str) -> bool:
    """Tell whether a column of data/interactions may have this name beside user, item and timestamp."""
    return bool(name) and name not in RESERVED and not name.startswith("__")


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
