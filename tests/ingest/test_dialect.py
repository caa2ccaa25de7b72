"""Delimiters and header lines of CSV and TSV files, recognised or set."""

from pathlib import Path

import pytest
from raw_logs import Ingest, csv_text, interactions, write

from pipeline.errors import UserError

LOG = interactions()
RATED = [(user, item, "4,5", time) for user, item, time in LOG]  # with a decimal comma


def divided(delimiter: str, header: str = "user,item,timestamp") -> str:
    return csv_text(LOG, header).replace(",", delimiter)


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t", "::"])
@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.csv.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_delimiter_is_recognised(ingest: Ingest, tmp_path: Path, delimiter: str, name: str, mark: str) -> None:
    result = ingest(write(tmp_path / name, mark + divided(delimiter)))
    assert result.rows == LOG
    assert result.summary["rows_read"] == 36


@pytest.mark.parametrize("typed", ["~", "#~#", "\t", "\\t", "tab"])
def test_another_delimiter_can_be_set(ingest: Ingest, tmp_path: Path, typed: str) -> None:
    written = "\t" if "t" in typed else typed
    assert ingest(write(tmp_path / "log.csv", divided(written)), delimiter=typed).rows == LOG


def test_decimal_commas_do_not_divide_fields(ingest: Ingest, tmp_path: Path) -> None:
    text = "".join(";".join(map(str, row)) + "\n" for row in RATED)
    path = write(tmp_path / "log.csv", text)
    assert ingest(path, header=["user", "item", "price", "timestamp"]).rows == LOG


def test_delimiters_inside_quotes_and_texts_do_not_count(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    titles = [f"a;b|{n};c;d" for n in range(6)]
    rows = "".join(f'i{n},"{title}, x",p|q|r|s\n' for n, title in enumerate(titles))
    write(tmp_path / "raw" / "items.csv", '"item","title",categories\n' + rows)
    assert ingest(tmp_path / "raw").frame("items").title.tolist() == [f"{title}, x" for title in titles]


def test_the_item_file_may_be_divided_otherwise(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "interactions.csv", divided(";"))
    write(tmp_path / "raw" / "items.csv", "item::title\n" + "".join(f"i{n}::Title, {n}\n" for n in range(6)))
    result = ingest(tmp_path / "raw", delimiter=";")
    assert result.rows == LOG
    assert result.frame("items").title.tolist() == [f"Title, {n}" for n in range(6)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "::"])
def test_a_log_without_a_header_line_is_refused_and_loses_no_row_with_names(
    ingest: Ingest, tmp_path: Path, delimiter: str
) -> None:
    path = write(tmp_path / "log.csv", divided(delimiter).partition("\n")[2])
    with pytest.raises(UserError, match=r"log\.csv has no header line") as error:
        ingest(path)
    assert "ingest.header: [user, item, timestamp]" in error.value.fix
    result = ingest(path, header=["user", "item", "timestamp"])
    assert result.rows == LOG
    assert result.summary["rows_read"] == 36


def test_values_of_the_first_row_are_no_column_names(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", csv_text(LOG).partition("\n")[2])
    with pytest.raises(UserError, match="has no header line"):
        ingest(path, columns={"user": "u0", "item": "i0", "timestamp": str(LOG[0][2])}, k_core=0)


def test_lines_are_counted_from_the_top_with_and_without_a_header(ingest: Ingest, tmp_path: Path) -> None:
    for delimiter in (";", "::"):
        text = divided(delimiter) + f"u1{delimiter}{delimiter}1400000000\n"
        assert ingest(write(tmp_path / "a.csv", text), max_reject_rate=0.1).rejects == [
            ("a.csv", 38, "item is missing")
        ]
        path = write(tmp_path / "b.csv", text.partition("\n")[2])
        rejects = ingest(path, max_reject_rate=0.1, header=["user", "item", "timestamp"]).rejects
        assert rejects == [("b.csv", 37, "item is missing")]


def test_names_for_a_log_that_has_them_in_its_first_line_take_no_row(ingest: Ingest, tmp_path: Path) -> None:
    result = ingest(write(tmp_path / "log.csv", csv_text(LOG)), header=["user", "item", "timestamp"])
    assert (result.rows, result.rejects) == (LOG, [])


def test_numbered_and_mapped_columns_are_a_header(ingest: Ingest, tmp_path: Path) -> None:
    numbered = {"user": "0", "item": "1", "timestamp": "2"}
    assert ingest(write(tmp_path / "a.csv", csv_text(LOG, "0,1,2")), columns=numbered).rows == LOG
    rows = [(*row, 5) for row in LOG]
    mapped = {"user": "who", "item": "what", "timestamp": "when"}
    assert ingest(write(tmp_path / "b.csv", csv_text(rows, "who,what,when,2020")), columns=mapped).rows == LOG


def test_another_number_of_names_is_an_error(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", csv_text(LOG).partition("\n")[2])
    with pytest.raises(UserError, match=r"has 3 columns, ingest\.header has 2 names"):
        ingest(path, header=["user", "item"])


def test_an_item_file_without_a_header_line_is_refused(ingest: Ingest, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "interactions.csv", csv_text(LOG))
    write(tmp_path / "raw" / "items.csv", "".join(f"i{n},Tea,{n}.5\n" for n in range(6)))
    with pytest.raises(UserError, match=r"items\.csv has no header line") as error:
        ingest(tmp_path / "raw")
    assert error.value.fix == "write a header line into the file, such as item,title"
