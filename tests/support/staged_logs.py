"""The first half of the stage ingest on a test's raw files: everything that is read, without the engine's start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa
from raw_logs import Row
from settings import read_params

import pipeline.ingest.stage as stage
from pipeline.artifacts import MICROSECONDS
from pipeline.ingest.rejects import SCHEMA


@dataclass
class Staged:
    """The typed files of the first half, read back.

    read: rows of the log. columns: our name -> the log's. rejects: (source, line, reason) of each bad row.
    """

    folder: Path
    read: int
    columns: dict[str, str]
    rejects: list[tuple[str, int, str]]
    reject_rows: list[str]

    @property
    def log(self) -> pd.DataFrame:
        log = pd.read_parquet(self.folder / "log.parquet")
        if pd.api.types.is_integer_dtype(log.item):  # records of the item file, which lists all items
            log["item"] = log.item.map(self.items.set_index("source_row").raw_id)
        return log

    @property
    def items(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "items.parquet")

    @property
    def rows(self) -> list[Row]:
        """(raw user, raw item, timestamp in seconds) in the order of the file."""
        log = self.log
        return list(zip(log.user, log.item, log.timestamp // MICROSECONDS, strict=True))


class Stage(Protocol):
    """The fixture `read_log`."""

    def __call__(self, path: Path | str, dataset: str = "custom", **settings: Any) -> Staged: ...


def stage_files(path: Path | str, work: Path, dataset: str = "custom", **settings: Any) -> Staged:
    """Reads the files into the folder `work` as the stage does."""
    params = read_params({"dataset": dataset, "ingest": {"path": str(path), **settings}})
    source = stage._find(params, work)
    staged = stage._stage(params, source, work, work / "saved_rejects.parquet")
    table = pa.concat_tables([SCHEMA.empty_table(), *staged.rejects.blocks("1GB")])
    found = list(zip(*(table[name].to_pylist() for name in ("source", "line", "reason")), strict=True))
    return Staged(work, staged.log.read, dict(staged.log.columns), found, table["row"].to_pylist())
