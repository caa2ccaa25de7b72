"""The result's page: complete, self-contained, equal for equal results."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from settings import some_params

from pipeline.results.identity import Result, read_result
from pipeline.results.parameters import flatten
from pipeline.track.known import remember
from pipeline.track.page import render_page
from pipeline.track.scoreboard import scoreboard_rows, scoreboard_text


@pytest.fixture
def result(project: Path) -> Result:  # noqa: ARG001 - asked for what it does
    return read_result(Path("reports"), Path("data/interactions"), Path("data/sids"), Path("dvc.lock"))


@pytest.fixture
def page(result: Result) -> str:
    return render_page(result, flatten(some_params()))


def test_equal_results_give_equal_bytes(result: Result, page: str) -> None:
    assert render_page(result, flatten(some_params())) == page


def test_the_page_needs_no_other_file_and_no_network(page: str) -> None:
    assert not re.findall(r"<(?:script|link|img|iframe)\b|@import|src=", page)
    assert set(re.findall(r'xlink:href="(.)', page)) <= {"#"}


def test_the_page_shows_every_number_of_the_scoreboard(result: Result, page: str) -> None:
    for row in scoreboard_rows(result.metrics, "full"):
        for cell in row.cells:
            assert cell is None or f"{cell.value:.4f}" in page
    assert f"{result.metrics['recall_at_10_low']:.4f} to {result.metrics['recall_at_10_high']:.4f}" in page
    assert "1,490 users without ties" in page


def test_the_page_has_two_curves_two_breakdowns_the_sids_and_every_parameter(result: Result, page: str) -> None:
    assert page.count("<svg") == 5
    for key in flatten(some_params()):
        assert f"<code>{key}</code>" in page
    assert result.key in page


def test_what_a_strategy_drops_is_drawn_where_it_drops_something(result: Result, page: str) -> None:
    assert "Tokens that the encoder keeps" not in page
    pruned = replace(result, kept_by_level=[{"level": "level 1", "kept": "0.5"}, {"level": "separator", "kept": "1.0"}])
    drawn = render_page(pruned, flatten(some_params()))
    assert drawn.count("<svg") == 6
    assert "Tokens that the encoder keeps" in drawn


def test_what_the_user_wrote_is_text_and_no_markup(result: Result) -> None:
    params = flatten(some_params()) | {"ingest.path": "<script>alert(1)</script>"}
    assert "<script>" not in render_page(result, params)


def test_tags_are_closed(page: str) -> None:
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, _attrs: object) -> None:
            if tag not in ("meta", "br"):
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Reader().feed(page)
    assert open_tags == []


def test_one_validation_and_one_bin_are_enough(result: Result) -> None:
    short = replace(result, history=result.history[:1], by_history=result.by_history[:1])
    assert render_page(short, flatten(some_params())).count("<svg") == 5


def test_the_table_leaves_out_what_was_not_measured(result: Result) -> None:
    lines = scoreboard_text(result.metrics, "full").splitlines()
    assert lines[1].split() == ["recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr@10", "recall@10", "ndcg@10"]
    model, counting = lines[2], lines[4]
    label = "full, seen dropped"
    assert model.startswith(label)
    assert len(model.removeprefix(label).split()) == 7
    assert lines[3].startswith("full, seen included")
    assert counting.split()[3:5] == [
        f"{result.metrics['cooccurrence_recall_at_10']:.4f}",
        f"{result.metrics['cooccurrence_ndcg_at_10']:.4f}",
    ]
    recall_at_10 = counting.index(counting.split()[3])
    assert recall_at_10 == model.index(model.removeprefix(label).split()[1]), "recall@10 stands under recall@10"


def test_other_results_that_were_tested_alike_are_drawn_and_others_are_not(result: Result, tmp_path: Path) -> None:
    params = flatten(some_params())
    (own,) = remember(result, params, tmp_path)
    assert "Quality against cost" not in render_page(result, params, [own])
    better = replace(result, key="b", metrics=result.metrics | {"recall_at_10": 0.5})
    other_rule = replace(result, key="c", metrics=result.metrics | {"seen_dropped": 0})
    assert len(remember(other_rule, params, tmp_path)) == 1
    points = remember(better, params | {"strategy": "rastp"}, tmp_path)
    assert sorted(point.name for point in points) == ["full t5", "rastp t5"]
    page = render_page(result, params, points)
    assert "Quality against cost" in page
    assert "rastp t5" in page
    (tmp_path / "results/b.json").write_text("{")
    assert remember(result, params, tmp_path) == [own], "a damaged note is passed over"


def test_the_page_says_where_a_sample_was_measured(result: Result, page: str) -> None:
    assert "a sample" not in page
    sampled = {"users_in_all": 7_000_000, "valid_users": 50_000, "valid_users_in_all": 6_900_000}
    drawn = render_page(replace(result, metrics={**result.metrics, **sampled}), flatten(some_params()))
    for words in (
        "test users of 7,000,000, a sample",
        ">a sample of ",
        "on a sample of 50,000 of 6,900,000 validation users",
    ):
        assert words in drawn
    assert "on all validation users" not in drawn
    assert "sampled users" in scoreboard_text({**result.metrics, **sampled}, "full")
