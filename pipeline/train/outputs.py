"""Write the files of reports/ of a training run: figures, tables, and what was skipped."""

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import write_bytes, write_json, write_tensors
from pipeline.manifest import sealed
from pipeline.strategies.base import TableRows
from pipeline.train.kept_tokens import KeptTokens

STORE = "skipped/store.safetensors"


def write_reports(
    reports: Path,
    timings: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    kept: KeptTokens,
    tables: Mapping[str, TableRows],
    learned: dict[str, np.ndarray],
) -> None:
    """Write history.csv, the two tables of kept tokens, passes.csv, skipped/ and, last, timings.json.

    timings.json lists the checksums of the others.

    Args:
        kept: counts of the kept tokens of validation histories.
        tables: as the strategy's `Report` gives them.
        learned: likewise.
    """
    shown = {"history": history, "kept_by_level": kept.by_level(), "kept_by_position": kept.by_position()}
    skipped = {f"skipped/{name}": rows for name, rows in tables.items() if name != "passes"}
    shutil.rmtree(reports / "skipped", ignore_errors=True)  # tables of an earlier run
    written = {f"{name}.csv": rows for name, rows in {**shown, "passes": tables["passes"], **skipped}.items()}
    for name, rows in written.items():
        write_bytes(reports / name, csv_of(rows))
    if learned:
        write_tensors(reports / STORE, learned)
    names = [*written, *([STORE] if learned else [])]
    write_json(reports / "timings.json", sealed(timings, reports, names))


def csv_of(rows: Sequence[Mapping[str, float | str]]) -> bytes:
    """Return a table with a heading as CSV; numbers have six digits after the point."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: value if isinstance(value, str) else round(value, 6) for key, value in row.items()} for row in rows
    )
    return text.getvalue().encode()
