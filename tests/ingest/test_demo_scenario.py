"""Reading the demo's scenario: every knob is explained, and a mistake is named."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.ingest.demo.scenario import Scenario, load_scenario

SCENARIO = Path(__file__).resolve().parents[2] / "data" / "demo" / "scenario.yaml"


def load_edited(folder: Path, **knobs: Any) -> Scenario:
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(SCENARIO.read_text()), **knobs}))
    return load_scenario(path)


def test_the_committed_file_has_every_knob_once_and_explains_each_group() -> None:
    text = SCENARIO.read_text()
    assert [line.split(":")[0] for line in text.splitlines() if re.match(r"\w", line)] == [
        field.name for field in dataclasses.fields(Scenario)
    ]
    for group in text.split("\n\n"):
        assert group.startswith("#")
    assert load_scenario(SCENARIO).users == 2000


def test_an_unknown_knob_names_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown key 'user'.*did you mean 'users'"):
        load_edited(tmp_path, user=3)


def test_a_missing_knob_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("users: 10\n")
    with pytest.raises(UserError, match="missing key 'items'"):
        load_scenario(path)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"users": 2.5}, "users is 2.5, expected a whole number"),
        ({"users": "many"}, "users is 'many', expected a whole number"),
        ({"like": True}, "like is True, expected a number"),
        ({"noise_sessions": 1.2}, "noise_sessions is a share between 0 and 1"),
        ({"sessions": float("nan")}, "sessions is nan, expected a number"),
        ({"weeks": 0}, "must be 1 or more"),
        ({"categories": 9}, "categories must lie in 2..8"),
        ({"items": 70}, "70 items are too few"),
        ({"feed_interest": 0.9, "feed_trending": 0.2}, "must not exceed 1"),
        ({"trend_days": 0}, "trend_days above 0"),
    ],
)
def test_impossible_values_are_refused_by_name(tmp_path: Path, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_edited(tmp_path, **knobs)


@pytest.mark.parametrize("text", ["[1, 2]", "users: [", "just words", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_scenario(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="git checkout data/demo"):
        load_scenario(tmp_path / "scenario.yaml")


def test_a_small_catalogue_uses_less_of_the_tree(tmp_path: Path) -> None:
    few, many = load_edited(tmp_path, items=80, leaf_items=5), load_edited(tmp_path, items=1000, leaves=7)
    assert (few.leaves_used, few.leaf_count) == (2, 16)
    assert (many.leaves_used, many.leaf_count) == (7, 56)
