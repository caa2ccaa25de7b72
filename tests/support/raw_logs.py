"""Small raw files written as their publishers and users write them, and the stage's output read back."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
START = 1_400_000_000  # a second in 2014
Row = tuple[str, str, int]


def interactions(users: int = 6, items: int = 6) -> list[Row]:
    """Every user with every item, a minute apart: a log that a 5-core leaves unchanged."""
    pairs = [(user, item) for user in range(users) for item in range(items)]
    return [(f"u{user}", f"i{item}", START + 60 * minute) for minute, (user, item) in enumerate(pairs)]


def csv_text(rows: list[tuple[Any, ...]], header: str = "user,item,timestamp") -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def jsonl_text(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    """Writes text as the file's name demands: gzip where it ends in .gz."""
    content = text if isinstance(text, bytes) else text.encode(encoding)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


@dataclass
class Ingested:
    """The output folder, read back."""

    folder: Path
    summary: dict[str, Any]

    def frame(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / f"{name}.parquet")

    @property
    def rows(self) -> list[Row]:
        """(raw user, raw item, timestamp) in the order of the output."""
        log, users, items = self.frame("interactions"), self.frame("users"), self.frame("items")
        return list(zip(users.raw_id[log.user_id], items.raw_id[log.item_id], log.timestamp, strict=True))

    @property
    def rejects(self) -> list[tuple[str, int, str]]:
        """(source, line, reason) of each bad row."""
        return list(self.frame("rejects")[["source", "line", "reason"]].itertuples(index=False, name=None))


class Ingest(Protocol):
    """The fixture `ingest`."""

    def __call__(self, path: Path | str, dataset: str = "custom", **settings: Any) -> Ingested: ...
