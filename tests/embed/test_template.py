"""How an item's fields become its text."""

import pytest
from settings import read_params

from pipeline.embed.template import fields_of, render_text
from pipeline.errors import UserError

TEMPLATE = ("{title}", "Brand: {brand}", "{categories} for {audience}")


def test_segments_are_filled_and_joined_by_a_full_stop() -> None:
    item = {"title": "Lipstick", "brand": "Wawo", "categories": "Beauty", "audience": "all"}
    assert render_text(TEMPLATE, item) == "Lipstick. Brand: Wawo. Beauty for all"


@pytest.mark.parametrize("nothing", [None, "", "  \n\t "])
def test_a_segment_with_a_missing_field_is_left_out_whole(nothing: str | None) -> None:
    item = {"title": "Lipstick", "brand": nothing, "categories": "Beauty", "audience": nothing}
    assert render_text(TEMPLATE, item) == "Lipstick"
    assert render_text(TEMPLATE, {"brand": "Wawo"}) == "Brand: Wawo"


def test_an_item_without_any_field_has_no_text() -> None:
    assert render_text(TEMPLATE, {"title": None, "audience": "all"}) == ""


def test_runs_of_white_space_become_one_space_and_numbers_become_words() -> None:
    assert render_text(("{title} ({year})",), {"title": " Heat \n  2 ", "year": 1995}) == "Heat 2 (1995)"


def test_braces_in_a_field_are_left_as_they_are() -> None:
    assert render_text(("{title}",), {"title": "{categories} {0}", "categories": "x"}) == "{categories} {0}"


def test_an_unknown_field_names_the_nearest_item_column_and_all_of_them() -> None:
    with pytest.raises(UserError, match="the field 'brnad'") as caught:
        fields_of(("{title}", "{brnad}"), ["item_id", "title", "brand"])
    assert caught.value.why == "did you mean 'brand'? (valid: brand, item_id, title)"


def test_title_categories_description_and_price_may_be_absent_from_a_data_set() -> None:
    """So that a preset of an encoder, which names them, goes with any data."""
    assert fields_of(("{title}", "{categories}", "{description}", "{price}"), ["raw_id", "title"]) == ["title"]


@pytest.mark.parametrize("segment", ["no field", "{}", "{title", "title}", "{title!r}", "{title.upper}", "{{title}}"])
def test_a_segment_that_is_no_template_is_refused_when_params_are_read(segment: str) -> None:
    with pytest.raises(UserError, match=r"embed\.template segment"):
        read_params({"embed": {"template": ["{title}", segment]}})
