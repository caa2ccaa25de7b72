"""cut.parquet: the users and items that ingest left out, with what they had, against a count by hand."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from raw_logs import START, Ingest, csv_text, interactions, write

from pipeline.ingest import cut

EXTRA = [
    ("rare", "i1", START, 1),
    ("rare", "i1", START + 1, 1),
    ("rare", "i2", START + 2, 1),
    ("silent", "i1", START, 0),
    ("u1", "odd", START, 1),
    *[("busy", f"only{n}", START + n, 1) for n in range(7)],
]
LOG = [(*row, 1) for row in interactions()] + EXTRA


@pytest.mark.parametrize("batch", [2, 1_000_000])
def test_lists_what_is_left_out_in_the_order_of_the_log(
    ingest: Ingest, tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "BATCH_ROWS", batch)
    path = write(tmp_path / "log.csv", csv_text(LOG, "user,item,timestamp,click"))
    result = ingest(path, minimum={"click": 1})
    found = list(result.frame("cut").itertuples(index=False, name=None))
    assert found == [
        ("user", "rare", 3, 2),
        ("user", "silent", 1, 0),
        ("user", "busy", 7, 7),
        ("item", "odd", 1, 1),
        *[("item", f"only{n}", 1, 1) for n in range(7)],
    ]
    metadata = pq.read_schema(result.folder / "cut.parquet").metadata
    assert metadata == {b"k_core": b"5", b"minimum": b"click >= 1"}


def test_lists_items_of_the_item_file_that_nobody_has(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "logs/interactions.csv", csv_text(LOG, "user,item,timestamp,click"))
    names = ["never", *sorted({row[1] for row in LOG}), "neither"]
    write(tmp_path / "logs/items.csv", csv_text([(name, "x") for name in names], "item,title"))
    frame = ingest(tmp_path / "logs").frame("cut")
    items = frame[frame.kind == "item"]
    assert items.raw_id.tolist() == ["never", "odd", *[f"only{n}" for n in range(7)], "neither"]
    assert items.rows.tolist() == [0, *[1] * 8, 0]


def test_every_id_of_the_log_is_left_or_listed(ingest: Ingest, tmp_path: Path) -> None:
    result = ingest(write(tmp_path / "log.csv", csv_text(LOG, "user,item,timestamp,click")), repeats="keep")
    frame = result.frame("cut")
    for kind, column in (("user", 0), ("item", 1)):
        rows = Counter(str(row[column]) for row in LOG)
        listed = dict(frame[frame.kind == kind][["raw_id", "rows"]].itertuples(index=False, name=None))
        left = set(result.frame(f"{kind}s").raw_id)
        assert listed == {name: count for name, count in rows.items() if name not in left}


def test_is_empty_where_nothing_is_left_out(ingest: Ingest, tmp_path: Path) -> None:
    result = ingest(write(tmp_path / "log.csv", csv_text(interactions())))
    assert len(result.frame("cut")) == 0
