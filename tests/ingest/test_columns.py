"""Which columns are recognised, and what is said when they are not."""

from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.ingest.columns import LogColumns, recognise_items, recognise_log


def sample(**columns: Any) -> pa.Table:
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def log(mapping: dict[str, str] | None = None, guess_actions: bool = True, **columns: Any) -> LogColumns:
    return recognise_log(sample(**columns), mapping or {}, "the log", guess_actions=guess_actions)


@pytest.mark.parametrize("user", ["user", "user_id", "userId", "reviewerID"])
@pytest.mark.parametrize("item", ["asin", "item", "item_id", "movieId"])
@pytest.mark.parametrize("time", ["unix_time", "timestamp", "time", "unixReviewTime"])
def test_the_usual_names_are_recognised(user: str, item: str, time: str) -> None:
    columns: dict[str, Any] = {item: ["i"], time: ["1"], user: ["u"]}
    assert log(**columns) == LogColumns(user, item, time, {})


def test_numeric_columns_are_actions_and_text_is_not() -> None:
    columns = log(
        user=["u", "v"],
        item=["i", "j"],
        time=["1", "2"],
        rating=["4.5", ""],
        click=["true", "false"],
        comment=["good", "5"],
        empty=["", ""],
        position=["1", "2"],
    )
    assert columns.actions == {"rating": "rating", "click": "click"}


def test_one_bad_number_does_not_hide_an_action() -> None:
    assert log(user=["u"] * 3, item=["i"] * 3, time=["1"] * 3, rating=["5", "oops", "3"]).actions == {
        "rating": "rating"
    }


def test_ingest_columns_maps_renames_and_leaves_out() -> None:
    columns = log(
        {"user": "member", "rating": "overall", "session": ""},
        member=["m"],
        item=["i"],
        time=["1"],
        overall=["5"],
        session=["77"],
        seconds=["3"],
    )
    assert columns == LogColumns("member", "item", "time", {"rating": "overall", "seconds": "seconds"})


def test_a_column_of_a_known_name_that_is_not_ours_is_no_action() -> None:
    assert log({"user": "user"}, user=["u"], user_id=["1"], item=["i"], time=["1"]).actions == {}


def test_row_numbers_are_no_actions() -> None:
    nameless: dict[str, Any] = {"": ["0"]}
    assert log(user=["u"], item=["i"], time=["1"], __index_level_0__=["7"], **nameless).actions == {}


def test_a_logs_own_position_is_kept_under_another_name() -> None:
    columns: dict[str, Any] = {"user": ["u"], "item": ["i"], "time": ["1"], "position": ["3"]}
    assert log(**columns).actions == {}
    assert log({"shown_at": "position"}, **columns).actions == {"shown_at": "position"}


def test_a_missing_column_lists_those_found() -> None:
    with pytest.raises(UserError, match="no column of the log is known to be the timestamp") as error:
        log(user=["u"], item=["i"], day=["1"])
    assert error.value.why == "columns found: user, item, day"
    assert "ingest.columns.timestamp=NAME" in error.value.fix


def test_an_ambiguous_column_lists_those_found() -> None:
    with pytest.raises(UserError, match="user and user_id of the log could both be the user") as error:
        log(user=["u"], user_id=["u"], item=["i"], time=["1"])
    assert error.value.why == "columns found: user, user_id, item, time"


def test_a_wrong_name_in_ingest_columns_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match=r"the log has no column 'membr', which ingest\.columns or the recipe") as error:
        log({"user": "membr"}, member=["u"], item=["i"], time=["1"])
    assert "did you mean 'member'?" in error.value.fix


def test_an_item_files_columns_are_recognised_and_the_others_kept() -> None:
    names = ["asin", "title", "genres", "image", "brand", ""]
    assert recognise_items(names, {}, "the items") == {
        "item": "asin",
        "title": "title",
        "categories": "genres",
        "image": "image",
        "brand": "brand",
    }


def test_an_item_file_may_name_its_items_otherwise_than_the_log() -> None:
    assert recognise_items(["item", "name"], {"item": "sku", "title": "name", "user": "member"}, "the items") == {
        "item": "item",
        "title": "name",
    }
    assert recognise_items(["sku"], {"item": "sku"}, "the items") == {"item": "sku"}


def test_an_item_file_without_items_is_an_error() -> None:
    with pytest.raises(UserError, match="no column of the items is known to be the item"):
        recognise_items(["name"], {}, "the items")


@pytest.mark.parametrize("user", ["customer_id", "visitorid", "Customer ID", "member-id", "UID"])
@pytest.mark.parametrize("item", ["product_id", "sku", "parent_asin", "StockCode", "track.id"])
@pytest.mark.parametrize("time", ["event_time", "datetime", "seen_at", "created_at", "InvoiceDate"])
def test_further_names_are_recognised(user: str, item: str, time: str) -> None:
    columns: dict[str, Any] = {item: ["i"], time: ["1"], user: ["u"]}
    assert log(**columns) == LogColumns(user, item, time, {})


def test_a_usual_name_goes_before_a_further_one() -> None:
    columns = log(visitorid=["7"], user=["u"], item=["i"], product=["tea"], time=["1"], ts=["2"])
    assert (columns.user, columns.item, columns.timestamp) == ("user", "item", "time")
    assert set(columns.actions) == {"visitorid", "ts"}


def test_amazons_parent_goes_before_the_variant() -> None:
    assert log(user_id=["u"], asin=["i"], parent_asin=["p"], timestamp=["1"]).item == "parent_asin"


def test_an_items_product_name_is_its_title_and_stays_under_its_name() -> None:
    assert recognise_items(["sku", "product_name", "department"], {}, "the items") == {
        "item": "sku",
        "title": "product_name",
        "categories": "department",
        "product_name": "product_name",
        "department": "department",
    }
    assert recognise_items(["sku", "title", "name"], {}, "the items") == {
        "item": "sku",
        "title": "title",
        "name": "name",
    }


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"user": "item"}, "the column 'item' of the log is read as user and as item"),
        ({"timestamp": "user"}, "the column 'user' of the log is read as user and as timestamp"),
        ({"rating": "overall", "zz": "overall"}, "the column 'overall' of the log is read as rating and as zz"),
    ],
)
def test_a_column_that_serves_two_names_is_an_error(mapping: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        log(mapping, user=["u"], item=["i"], time=["1"], overall=["5"])


def test_an_items_column_that_serves_two_names_is_an_error() -> None:
    with pytest.raises(UserError, match="the column 'item' of the items is read as item and as title"):
        recognise_items(["item", "price"], {"title": "item"}, "the items")
