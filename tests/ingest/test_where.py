"""`ingest.where` and `ingest.unknown_items`: rows that are not wanted, items that the item file lacks, the counts."""

import re
from pathlib import Path
from typing import Any

import pytest
from raw_logs import START, Ingest, csv_text, interactions, jsonl_text, write

from pipeline.errors import UserError
from pipeline.ingest.report import losses

EVENTS = ("view", "cart", "purchase")
HEADER = "user,item,timestamp,event,source"
# Every user views, puts into the cart and buys every item; the last column is 1 for every other row.
LOG = [
    (user, item, time + 3 * n, event, n % 2) for user, item, time in interactions() for n, event in enumerate(EVENTS)
]


def log(folder: Path, rows: list[tuple[Any, ...]] = LOG) -> Path:
    return write(folder / "log.csv", csv_text(rows, HEADER))


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ({"event": "purchase"}, ["purchase"]),
        ({"event": ["purchase", "cart"]}, ["cart", "purchase"]),
        ({"event": ["purchase", "cart"], "source": 1}, ["cart"]),
        ({"source": True}, ["cart"]),
        ({"source": "1.0"}, ["cart"]),
        ({}, list(EVENTS)),
        ("", list(EVENTS)),
    ],
)
def test_rows_of_other_values_are_left_out_and_counted(
    ingest: Ingest, tmp_path: Path, where: Any, left: list[str]
) -> None:
    result = ingest(log(tmp_path), where=where, repeats="keep")
    wanted = [(user, item, time) for user, item, time, event, _ in LOG if event in left]
    assert result.rows == wanted
    assert result.summary["rows_read"] == len(LOG)
    assert result.summary.get("not_wanted", 0) == len(LOG) - len(wanted)
    assert result.rejects == []


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_holds_for_every_format_and_for_missing_values(ingest: Ingest, tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    rows = [{"user": u, "item": i, "timestamp": t, "event": e if e != "view" else None} for u, i, t, e, _ in LOG]
    path = tmp_path / f"log.{suffix}"
    if suffix == "jsonl":
        write(path, jsonl_text(rows))
    elif suffix == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    for value, event in (("purchase", "purchase"), ("", "view")):
        found = ingest(path, where={"event": value}).rows
        assert found == [(u, i, t) for u, i, t, e, _ in LOG if e == event]


def test_a_row_that_is_not_wanted_need_not_be_good(ingest: Ingest, tmp_path: Path) -> None:
    logins = [("u1", "", START, "login", 0)] * 200
    result = ingest(log(tmp_path, [*logins, *LOG]), where={"event": "purchase"})
    assert result.rejects == []
    assert result.summary["not_wanted"] == 200 + 72
    bad = [("u1", "", START, "purchase", 0)]
    result = ingest(log(tmp_path, [*logins, *LOG, *bad]), where={"event": "purchase"}, max_reject_rate=0.1)
    assert result.rejects == [("log.csv", 310, "item is missing")]
    with pytest.raises(UserError, match="1 of 37 rows"):  # rows that are not wanted do not dilute the share
        ingest(log(tmp_path, [*logins, *LOG, *bad]), where={"event": "purchase"})


def test_a_column_may_be_named_by_our_name_and_may_be_any(ingest: Ingest, tmp_path: Path) -> None:
    path = log(tmp_path)
    renamed = ingest(path, where={"what": 1}, columns={"what": "source"})
    assert set(renamed.frame("interactions").what) == {1}
    by_user = ingest(path, where={"user": ["u1", "u2"]}, k_core=0)
    assert {user for user, _, _ in by_user.rows} == {"u1", "u2"}


def test_a_column_that_is_not_there_is_an_error_with_those_found(ingest: Ingest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log\.csv has no column 'evnt', which ingest\.where names") as error:
        ingest(log(tmp_path), where={"evnt": "purchase"})
    assert error.value.why == "columns found: user, item, timestamp, event, source"
    assert "did you mean 'event'" in error.value.fix


def test_a_value_that_no_row_has_is_told_with_those_found(
    ingest: Ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(log(tmp_path), where={"event": ["purchase", "Cart"]})
    said = "ingest.where wants event 'Cart', which no row has; event has view (36), cart (36), purchase (36)"
    assert said in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no row of the log is wanted by ingest\.where") as error:
        ingest(log(tmp_path), where={"event": "Cart"})
    assert error.value.why == "event has view (36), cart (36), purchase (36)"


@pytest.mark.parametrize("where", [{"event": []}, {"event": None}, ["event"], "event", {"event": {"is": "cart"}}])
def test_a_filter_that_says_nothing_is_refused(ingest: Ingest, tmp_path: Path, where: Any) -> None:
    with pytest.raises(UserError, match=r"ingest\.where"):
        ingest(log(tmp_path), where=where)


class TestUnknownItems:
    def folder(self, path: Path, ids: list[str]) -> Path:
        write(path / "interactions.csv", csv_text(interactions()))
        write(path / "items.csv", csv_text([(name, f"Title {name}") for name in ids], "item,title"))
        return path

    def test_are_bad_rows_or_enter_without_texts(
        self, ingest: Ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = self.folder(tmp_path / "logs", ["i5", "i9", "i3", "i1", "i0"])
        with pytest.raises(UserError, match="12 of 36 rows"):
            ingest(folder)
        result = ingest(folder, unknown_items="keep")
        assert result.rows == interactions()
        items = result.frame("items")
        assert items.raw_id.tolist() == ["i5", "i3", "i1", "i0", "i2", "i4"]
        assert items.title.tolist()[:4] == ["Title i5", "Title i3", "Title i1", "Title i0"]
        assert items.title.isna().tolist() == [False] * 4 + [True] * 2
        assert result.summary["unknown_items"] == {"items": 2, "rows": 12}
        assert "2 items with 12 rows of the log are not in items.csv" in capsys.readouterr().out

    def test_that_are_whole_numbers_are_one_item_however_written(self, ingest: Ingest, tmp_path: Path) -> None:
        rows = [(u, "7.0" if u == "u1" and i == "i2" else "7" if i == "i2" else i, t) for u, i, t in interactions()]
        write(tmp_path / "logs/interactions.csv", csv_text(rows))
        write(tmp_path / "logs/items.csv", csv_text([(f"i{n}", "x") for n in (0, 1, 3, 4, 5)], "item,title"))
        result = ingest(tmp_path / "logs", unknown_items="keep")
        assert sorted(result.frame("items").raw_id) == ["7", "i0", "i1", "i3", "i4", "i5"]

    def test_have_no_vector_beside_those_of_the_file(self, ingest: Ingest, tmp_path: Path) -> None:
        import numpy as np

        folder = self.folder(tmp_path / "logs", ["i5", "i4", "i3", "i1", "i0"])
        np.save(folder / "x_embeddings.npy", np.arange(10, dtype=np.float32).reshape(5, 2))
        vectors = ingest(folder, unknown_items="keep").frame("items").set_index("raw_id").vector
        assert vectors["i4"].tolist() == [2, 3]
        assert vectors["i0"].tolist() == [8, 9]
        assert vectors["i2"] is None


class TestTheTable:
    def test_adds_up_whatever_leaves(self, ingest: Ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rare = [("rare", "i1", START, "purchase", 1)] * 2
        rows = [*LOG, *rare, ("u1", "i1", "never", "purchase", 1), *LOG[2:6:3]]
        ingest(log(tmp_path, rows), where={"event": ["purchase", "cart"]}, minimum={"source": 0}, max_reject_rate=0.1)
        lines = capsys.readouterr().out.splitlines()
        start = next(i for i, line in enumerate(lines) if "what became of the rows" in line)
        table = {
            cells[0]: [int(cell.replace(",", "")) for cell in cells[1:]]
            for line in lines[start + 1 :]
            if len(cells := re.split(r"\s{2,}", line.strip())) > 1
        }
        assert list(table) == [
            "read",
            "bad: timestamp is no number and no ISO 8601 time",
            "not wanted by ingest.where",
            "usable",
            "below ingest.minimum: source >= 0",
            "repeats (the earliest counts)",
            "below 5-core",
            "left",
        ]
        read, bad, unwanted, usable, minimum, repeats, core, left = table.values()
        assert (read, bad, unwanted) == ([113], [-1], [-36])
        assert read[0] + bad[0] + unwanted[0] == usable[0]
        assert [sum(column) for column in zip(usable, minimum, repeats, core, strict=True)] == left == [36, 6, 6]
        assert core == [-1, -1, 0]

    def test_is_short_where_nothing_leaves(self, ingest: Ingest, tmp_path: Path) -> None:
        summary = ingest(write(tmp_path / "log.csv", csv_text(interactions()))).summary
        assert len(losses(summary, {}).splitlines()) == 6
