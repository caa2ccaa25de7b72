"""The settings of the stage ingest: section `ingest` of params.yaml."""

from dataclasses import dataclass
from typing import Literal

LEAST_LINE, MOST_LINE = 1 << 16, 1 << 30  # the parser of CSV counts the bytes of a block in 32 bits
MOST_FILE = 10**15
COLUMNS = ("user", "item", "timestamp", "title", "categories", "description", "image")  # keys of ingest.columns


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Say where the raw log lies and how it is cleaned."""

    path: str  # a file or a folder, which DVC can depend on; for the demo the one with scenario.yaml
    files: str  # custom: a glob inside that folder, such as "*.csv"; empty: the folder's interactions.*
    delimiter: str  # custom: what divides the fields of a CSV or TSV log; empty: found in its first lines
    engine: Literal["duckdb", "spark"]
    memory_limit: str  # DuckDB spills to disk above it
    k_core: int | Literal["recipe"]  # every user and item has at least this many interactions
    max_reject_rate: float  # share of bad rows above which the stage fails
    time_unit: Literal["s", "ms"]
    columns: dict[str, str]  # our name -> the log's name; one of `COLUMNS` that is empty is recognised
    header: tuple[str, ...]  # custom: column names of a CSV or TSV log that has no header line
    minimum: dict[str, float]  # action column -> least value that counts as positive
    max_line_bytes: int  # a longer line, or value of a Parquet file, is refused: the limit on the memory that it takes
    max_file_bytes: int  # of a download, and of a compressed file that is unpacked
    null_words: tuple[str, ...]  # texts that are no id, upper and lower case alike; the empty text is none either

    def __post_init__(self) -> None:
        if isinstance(self.k_core, int) and self.k_core < 0:
            raise ValueError("ingest.k_core must be 0 or more, or 'recipe'")
        if '"' in self.delimiter or "\n" in self.delimiter:
            raise ValueError("ingest.delimiter must be a text such as ; or :: and without quotes and line breaks")
        if len(set(self.header)) < len(self.header):
            raise ValueError("ingest.header must name every column once")
        if not LEAST_LINE <= self.max_line_bytes <= MOST_LINE:
            raise ValueError(f"ingest.max_line_bytes must be a number from {LEAST_LINE} to {MOST_LINE}")
        if not self.max_line_bytes <= self.max_file_bytes <= MOST_FILE:
            raise ValueError(f"ingest.max_file_bytes must be a number from ingest.max_line_bytes to {MOST_FILE}")
        if not 0 <= self.max_reject_rate <= 1:
            raise ValueError("ingest.max_reject_rate is a share between 0 and 1")

    @property
    def mapping(self) -> dict[str, str]:
        """Return our name -> the log's name, of the columns that the user names.

        An empty name is left out if it belongs to one of `COLUMNS`: that column is recognised. Under another name it
        stays, and leaves a numeric column out.
        """
        return {ours: theirs for ours, theirs in self.columns.items() if theirs or ours not in COLUMNS}
