"""An id that ingest left out is named as such, with the reason, where a command is asked for it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.ingest.cut import SCHEMA
from pipeline.raw_ids import dense_ids, naming_the_cut

KNOWN = pd.DataFrame({"raw_id": ["u1", "7", "u3"]})
ROWS: list[dict[str, Any]] = [
    {"kind": "user", "raw_id": "rare", "rows": 4, "interactions": 3},
    {"kind": "user", "raw_id": "silent", "rows": 1200, "interactions": 0},
    {"kind": "user", "raw_id": "busy", "rows": 9, "interactions": 9},
    {"kind": "user", "raw_id": "8", "rows": 1, "interactions": 1},
    {"kind": "item", "raw_id": "rare", "rows": 2, "interactions": 2},
    {"kind": "item", "raw_id": "listed", "rows": 0, "interactions": 0},
    {"kind": "item", "raw_id": "popular", "rows": 7, "interactions": 7},
]


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    table = pa.Table.from_pylist(ROWS, SCHEMA.with_metadata({"k_core": "5", "minimum": "click >= 1"}))
    pq.write_table(table, tmp_path / "cut.parquet")
    return tmp_path / "cut.parquet"


def refusal(kind: str, name: str, cut: Path) -> UserError:
    with pytest.raises(UserError) as caught, naming_the_cut(cut):
        dense_ids(["u1", name], KNOWN, kind, Path("known.parquet"))
    return caught.value


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("user", "rare", "in the log with 3 interactions, below ingest.k_core 5"),
        ("user", " rare ", "in the log with 3 interactions, below ingest.k_core 5"),
        ("user", "8.0", "in the log with 1 interaction, below ingest.k_core 5"),
        ("user", "silent", "in the log with 1,200 rows, none of which passes ingest.minimum (click >= 1)"),
        ("user", "busy", "with 9 interactions, fewer than ingest.k_core 5 of them with items that are left"),
        ("item", "rare", "in the log with 2 interactions, below ingest.k_core 5"),
        ("item", "listed", "it is in the item file, and the log has no row of it"),
        ("item", "popular", "with 7 interactions, fewer than ingest.k_core 5 of them with users that are left"),
    ],
)
def test_says_why_it_was_left_out(kind: str, name: str, why: str, cut: Path) -> None:
    error = refusal(kind, name, cut)
    assert "was left out by ingest" in error.what
    assert why in error.why
    assert ("--history" in error.fix) == (kind == "user")


def test_an_id_that_was_never_there_is_unknown_as_ever(cut: Path) -> None:
    error = refusal("user", "u2", cut)
    assert error.what == "user 'u2' is not known"
    assert error.fix.startswith("did you mean u")


def test_without_the_list_the_error_says_that_it_cannot_tell(tmp_path: Path) -> None:
    error = refusal("item", "rare", tmp_path / "cut.parquet")
    assert error.what == "item 'rare' is not known"
    assert "whether ingest left it out is not known" in error.why


def test_a_damaged_list_hides_no_error(cut: Path) -> None:
    cut.write_bytes(b"PAR1 and no more")
    assert refusal("user", "rare", cut).what == "user 'rare' is not known"
