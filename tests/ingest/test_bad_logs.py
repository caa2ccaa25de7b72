"""Bad input: every bad row is listed, and what cannot be read is one clear error that loses nothing."""

import gzip
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import START, Ingest, csv_text, interactions, jsonl_text, write

from pipeline.errors import UserError

GOOD = interactions()
MILLISECONDS = "timestamp is written as milliseconds since 1970, most others as seconds since 1970"
BAD_ROWS: list[tuple[tuple[Any, ...], str]] = [  # (fields, reason)
    (("", "i1", START), "user is missing"),
    (("u1", " ", START), "item is missing"),
    (("u1", "i1", ""), "timestamp is missing"),
    (("u1", "i1", "soon"), "timestamp is no number and no ISO 8601 time"),
    (("u1", "i1", 12), "timestamp outside 1990..2100"),
    (("u1", "i1", START * 1000), MILLISECONDS),
    (("u1", "i1", "2014-02-30"), MILLISECONDS.replace("milliseconds since 1970", "dates without a time of day")),
    (("u1", "i1", START * 10**6 * 5), "timestamp outside 1990..2100"),
    (("u1", "i1", START, 9), "4 fields where 3 are expected"),
]


def test_every_bad_row_of_a_csv_log_is_listed_with_its_line_and_reason(ingest: Ingest, tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = list(GOOD)
    expected = []
    for n, (fields, reason) in enumerate(BAD_ROWS):
        rows.insert(3 * n, fields)
        expected.append(("log.csv", 3 * n + 2, reason))
    result = ingest(write(tmp_path / "log.csv", csv_text(rows)), max_reject_rate=0.5)
    assert result.rejects == expected
    assert result.rows == GOOD
    assert result.frame("rejects").row[3] == "u1,i1,soon"
    assert result.summary["rows_read"] == len(rows)
    assert result.summary["rejected"] == len(BAD_ROWS) == sum(result.summary["rejects"].values())


def test_every_bad_row_of_a_json_log_is_listed_with_its_line_and_reason(ingest: Ingest, tmp_path: Path) -> None:
    good = [dict(zip(("user", "item", "timestamp"), row, strict=True)) for row in GOOD]
    text = (
        '{"user": "u1", "item"\n'
        + jsonl_text(good[:5])
        + '{"user": ["u1"], "timestamp": 1}\n"u1"\n'
        + jsonl_text(good[5:])
        + '{"user": {"id": 1}, "item": "i1", "timestamp": 1400000000}\n'
    )
    result = ingest(write(tmp_path / "log.jsonl", text), max_reject_rate=0.5)
    assert result.rejects == [
        ("log.jsonl", 1, "broken JSON"),
        ("log.jsonl", 7, "item is missing"),
        ("log.jsonl", 8, "not a JSON object"),
        ("log.jsonl", 40, "user is missing"),
    ]
    assert result.rows == GOOD


def test_an_item_that_the_item_file_does_not_list_is_a_reject(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text([*GOOD, ("u1", "i9", START)]))
    write(tmp_path / "raw" / "items.csv", "item,title\n" + "".join(f"i{n},t\n" for n in range(6)))
    assert ingest(tmp_path / "raw", max_reject_rate=0.1).rejects == [
        ("interactions.csv", 38, "item is not in items.csv")
    ]


ODD_NUMBERS = ["five", "1,204", "4 stars", "NULL-ish", "1_0", "inf", "1e999", "0x1F", "--", "½", '"']


@pytest.mark.parametrize("name", ["log.tsv", "log.jsonl", "log.parquet"])
@pytest.mark.parametrize("mapped", [False, True])
def test_an_optional_column_never_costs_an_interaction(
    ingest: Ingest, tmp_path: Path, name: str, mapped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    votes = [*ODD_NUMBERS, "", *["7"] * (len(GOOD) - len(ODD_NUMBERS) - 1)]
    rows = [(*row, vote) for row, vote in zip(GOOD, votes, strict=True)]
    columns = ["user", "item", "timestamp", "vote"]
    if name == "log.parquet":
        pd.DataFrame(rows, columns=columns).to_parquet(tmp_path / name)
    elif name == "log.jsonl":
        write(tmp_path / name, jsonl_text([dict(zip(columns, row, strict=True)) for row in rows]))
    else:
        quoted = [(*row[:3], '""""' if row[3] == '"' else row[3]) for row in rows]
        write(tmp_path / name, "\n".join("\t".join(map(str, row)) for row in [tuple(columns), *quoted]))
    result = ingest(tmp_path / name, max_reject_rate=0, columns={"vote": "vote"} if mapped else {})
    assert result.rows == GOOD
    assert result.rejects == []
    assert result.frame("interactions").vote.isna().sum() == len(ODD_NUMBERS) + 1
    assert result.summary["not_numbers"] == {"vote": len(ODD_NUMBERS)}
    assert f"{len(ODD_NUMBERS)} of vote" in capsys.readouterr().out


def test_an_optional_text_that_cannot_be_read_is_missing(ingest: Ingest, tmp_path: Path) -> None:
    odd = [r'"\ud83d"', '{"a": 1}', '[["a", ["b"]]]', "null", "NaN", r'"\ud83d"']
    users = [*["u"] * 5, "\\ud83d"]
    lines = [
        f'{{"user": "{user}", "item": "i{n}", "timestamp": {START + n}, "vote": {text}}}\n'
        for n, (user, text) in enumerate(zip(users, odd, strict=True))
    ]
    lines += [f'{{"user": "u", "item": "i{n}", "timestamp": {START + n}, "vote": 5}}\n' for n in range(6, 20)]
    result = ingest(write(tmp_path / "log.jsonl", "".join(lines)), k_core=0, max_reject_rate=0.1)
    assert result.rejects == [("log.jsonl", 6, "user is missing")]
    assert len(result.rows) == 19
    assert result.frame("interactions").vote.isna().sum() == 5


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(2)])
def test_bytes_that_are_no_text_are_missing(ingest: Ingest, tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table(
        {
            "user": pa.array([b"u1", b"u2", b"u1"], kind),
            "item": ["a", "b", "c"],
            "timestamp": [START] * 3,
            "note": pa.array([b"\xff\xfe", b"12", b"13"], kind),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    result = ingest(tmp_path / "log.parquet", k_core=0)
    assert result.frame("users").raw_id.tolist() == ["u1", "u2"]
    assert result.frame("interactions").note.isna().sum() == 1


def test_a_required_action_must_be_a_number(ingest: Ingest, tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [(*row, 5, 5) for row in GOOD]
    rows[3], rows[7], rows[8] = (*GOOD[3], "five", 5), (*GOOD[7], "", 5), (*GOOD[8], 5, "x")
    path = write(tmp_path / "log.csv", csv_text(rows, "user,item,timestamp,rating,vote"))
    result = ingest(path, max_reject_rate=0.1, k_core=0, minimum={"rating": 1})
    assert result.rejects == [("log.csv", 5, "rating is not a number"), ("log.csv", 9, "rating is missing")]
    assert result.summary["not_numbers"] == {"vote": 1}
    with pytest.raises(UserError, match="2 of 36 rows") as error:
        ingest(path, k_core=0, minimum={"rating": 1})
    assert "ingest.minimum" in error.value.fix


def test_an_odd_number_of_a_rejected_row_is_not_counted(ingest: Ingest, tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [*((*row, 5) for row in GOOD), ("", "i1", START, "x")]
    path = write(tmp_path / "log.csv", csv_text(rows, "user,item,timestamp,rating"))
    assert ingest(path, max_reject_rate=0.1).summary["not_numbers"] == {}


def test_lines_swallowed_by_a_stray_quote_are_all_counted(ingest: Ingest, tmp_path: Path) -> None:
    lines = csv_text(GOOD).splitlines()
    lines[10] = lines[10].replace("u", '"u')  # opened on line 11, closed on line 16
    lines[15] = lines[15].replace(",", '",', 1)
    result = ingest(write(tmp_path / "log.csv", "\n".join(lines)), max_reject_rate=0.5, k_core=0)
    assert [line for _, line, _ in result.rejects] == [11, 12, 13, 14, 15, 16]
    assert set(result.summary["rejects"]) == {"user holds a line break"}
    unclosed = ingest(write(tmp_path / "log.csv", "\n".join(lines[:15])), max_reject_rate=0.5, k_core=0)
    assert [line for _, line, _ in unclosed.rejects] == [11, 12, 13, 14, 15]


def test_too_many_bad_rows_fail_the_stage_which_keeps_the_list(ingest: Ingest, tmp_path: Path) -> None:
    rows = [*GOOD, *[("u1", "i1", START * 1000)] * 2, ("", "i1", START)]
    with pytest.raises(UserError, match=r"3 of 39 rows of log\.csv cannot be used") as error:
        ingest(write(tmp_path / "log.csv", csv_text(rows)))
    kept = tmp_path / "scratch" / "rejects.parquet"
    assert pd.read_parquet(kept).line.tolist() == [38, 39, 40]
    assert str(kept) in error.value.fix
    assert "ingest.time_unit" in error.value.fix
    reasons = error.value.why.splitlines()
    assert reasons[0] == "that is more than ingest.max_reject_rate, 0.01; the commonest reasons:"
    assert reasons[1] == f"  2 x {MILLISECONDS} (log.csv, line 38: u1,i1,{START * 1000})"
    assert reasons[2].startswith("  1 x user is missing (log.csv, line 40")


@pytest.mark.parametrize("limit", [0.01, 1.0])
def test_a_log_of_bad_rows_alone_is_told_by_their_reason_and_not_by_the_k_core(
    ingest: Ingest, tmp_path: Path, limit: float
) -> None:
    write(tmp_path / "raw/interactions.csv", csv_text(GOOD))
    write(tmp_path / "raw/items.csv", "item,title\n" + "".join(f"0{n},Item\n" for n in range(20)))
    with pytest.raises(UserError, match=r"36 of 36 rows of interactions\.csv cannot be used") as error:
        ingest(tmp_path / "raw", max_reject_rate=limit, k_core=0)
    assert ("more than ingest.max_reject_rate" in error.value.why) == (limit < 1)
    assert "36 x item is not in items.csv" in error.value.why
    assert "ingest.unknown_items=keep" in error.value.fix
    assert "raise ingest.max_reject_rate" not in error.value.fix


def test_an_object_in_place_of_an_id_is_named(ingest: Ingest, tmp_path: Path) -> None:
    rows = [{"user": {"id": user}, "item": item, "timestamp": time} for user, item, time in GOOD]
    with pytest.raises(UserError, match="36 of 36 rows") as error:
        ingest(write(tmp_path / "log.jsonl", jsonl_text(rows)))
    assert 'such as an object {"id": 7} of JSON, counts as missing' in error.value.fix


@pytest.mark.parametrize(("delimiter", "set_by_hand"), [(" ", ""), (",", ";")])
def test_a_header_that_was_not_divided_names_the_delimiter(
    ingest: Ingest, tmp_path: Path, delimiter: str, set_by_hand: str
) -> None:
    path = write(tmp_path / "log.csv", csv_text(GOOD).replace(",", delimiter))
    with pytest.raises(UserError, match=r"no column of log\.csv is known to be the user") as error:
        ingest(path, delimiter=set_by_hand)
    assert "set ingest.delimiter to what divides them" in error.value.fix
    assert len(ingest(path, delimiter=delimiter, k_core=0).frame("interactions")) == len(GOOD)


def test_a_column_that_only_looks_like_an_action_can_be_left_out(ingest: Ingest, tmp_path: Path) -> None:
    rows = [(*row, n if n < 30 else "ab") for n, row in enumerate(GOOD)]
    path = write(tmp_path / "log.csv", csv_text(rows, "user,item,timestamp,session"))
    assert ingest(path).summary["not_numbers"] == {"session": 6}
    result = ingest(path, columns={"session": ""})
    assert (result.rows, result.summary["not_numbers"]) == (GOOD, {})
    assert "session" not in result.frame("interactions")


def test_a_log_that_holds_nothing_but_bad_rows_says_why(ingest: Ingest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="36 of 36 rows") as error:
        ingest(write(tmp_path / "log.jsonl", csv_text(GOOD).partition("\n")[2]))
    assert "36 x broken JSON (log.jsonl, line 1: u0,i0," in error.value.why


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", ""),
        ("log.csv", "user,item,timestamp\n"),
        ("log.csv", "user,item,timestamp\n\n\n"),
        ("log.csv.gz", "user,item,timestamp\n"),
        ("log.jsonl", ""),
        ("log.jsonl.gz", "\n"),
    ],
)
def test_an_empty_log_is_an_error(ingest: Ingest, tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(UserError, match="the log has no rows"):
        ingest(write(tmp_path / name, text))


def test_an_empty_parquet_log_is_an_error(ingest: Ingest, tmp_path: Path) -> None:
    pd.DataFrame({"user": ["a"], "item": ["b"], "timestamp": [1]}).iloc[:0].to_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match="the log has no rows"):
        ingest(tmp_path / "log.parquet")


def test_an_empty_item_file_is_an_error(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(GOOD))
    write(tmp_path / "raw" / "items.csv", "item,title\n")
    with pytest.raises(UserError, match=r"items\.csv holds no readable rows"):
        ingest(tmp_path / "raw")


def test_a_k_core_that_leaves_nothing_is_an_error(ingest: Ingest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is left of the log after the filter '7-core'") as error:
        ingest(write(tmp_path / "log.csv", csv_text(GOOD)), k_core=7)
    assert "ingest.k_core" in error.value.fix


def test_a_minimum_that_leaves_nothing_is_an_error(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", csv_text([(*row, 1) for row in GOOD], "user,item,timestamp,click"))
    with pytest.raises(UserError, match="after the filter 'minimum click >= 2'"):
        ingest(path, minimum={"click": 2})


def test_a_wrong_column_name_is_an_error_that_lists_the_columns_found(ingest: Ingest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is known to be the user") as error:
        ingest(write(tmp_path / "log.csv", csv_text(GOOD, "who,item,timestamp")))
    assert error.value.why == "columns found: who, item, timestamp"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent.csv", "no file at"),
        ("*.csv", "no file at"),
        (".", r"no interactions\.\* in"),
        ("notes.doc", "format of .* is not known"),
    ],
)
def test_a_path_that_leads_to_no_log_is_an_error(ingest: Ingest, tmp_path: Path, path: str, message: str) -> None:
    write(tmp_path / "here" / "notes.doc", "hello")
    with pytest.raises(UserError, match=message):
        ingest(f"{tmp_path}/here/{path}")


def test_a_memory_limit_that_is_no_size_is_an_error(ingest: Ingest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="memory_limit is 'a lot'"):
        ingest(write(tmp_path / "log.csv", csv_text(GOOD)), memory_limit="a lot")


def test_spark_that_is_not_installed_is_an_error(
    ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(UserError, match="pyspark is not installed"):
        ingest(write(tmp_path / "log.csv", csv_text(GOOD)), engine="spark")


def test_after_any_error_what_was_there_is_as_before(ingest: Ingest, tmp_path: Path) -> None:
    before = ingest(write(tmp_path / "log.csv", csv_text(GOOD)))
    content = {file.name: file.read_bytes() for file in before.folder.iterdir()}
    truncated = gzip.compress(csv_text(GOOD).encode())[:-9]
    (tmp_path / "cut.csv.gz").write_bytes(truncated)
    with pytest.raises(UserError, match="no complete gzip file"):
        ingest(tmp_path / "cut.csv.gz")
    with pytest.raises(UserError, match="nothing is left"):
        ingest(tmp_path / "log.csv", k_core=7)
    assert {file.name: file.read_bytes() for file in before.folder.iterdir()} == content
    assert list((tmp_path / "scratch").iterdir()) == []
    assert [path.name for path in before.folder.parent.iterdir()] == ["interactions"]


FULL_DISK = """
import resource, sys
from pipeline.errors import UserError
from pipeline.ingest.stage import run
from pathlib import Path
sys.path.insert(0, "tests/support")
from settings import read_params
log, output, scratch = map(Path, sys.argv[1:])
params = read_params({"dataset": "custom", "ingest": {"path": str(log), "k_core": 0}})
run(params, output=output, scratch=scratch)
before = {file.name: file.read_bytes() for file in output.iterdir()}
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    run(params, output=output, scratch=scratch)
except UserError as error:
    assert "could not" in error.what, error.what
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before
    print("refused")
"""


def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path: Path, root: Path) -> None:
    rows = [(f"user-{n * 7919 % 99991}", f"item-{n * 104729 % 9973}", START + n) for n in range(20_000)]
    log = write(tmp_path / "log.csv", csv_text(rows))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, log, tmp_path / "output", tmp_path / "scratch"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("refused\n"), done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000  # the limit held for the other process only
