"""Answers to requests from outside: those of `recommend`, and no request that stops another."""

from pathlib import Path

import pytest
from evaluated_world import ITEMS, World

from pipeline.artifacts import write_json
from pipeline.errors import UserError
from pipeline.evaluate.recommend import recommend
from pipeline.results.serving_facts import serving_facts
from pipeline.serving.answers import Recommender, Request


@pytest.fixture
def recommender(world: World, tmp_path: Path) -> Recommender:
    write_json(tmp_path / "serving.json", serving_facts(world.paths["splits"]))
    return Recommender(world.paths["generator"], tmp_path / "serving.json")


def test_rows_of_all_kinds_are_answered_as_if_each_were_alone(world: World, recommender: Recommender) -> None:
    histories = [["item-1", "item-2"], [], ["item-3"], ["nobody", "item-3", "item-4"], ["x"], ["item-5"] * 9]
    requests = [Request(history) for history in histories]
    answers = recommender.answer(requests, k=4)
    assert [answer.source for answer in answers] == ["model", "popular", "model", "model", "popular", "model"]
    assert [answer.unknown for answer in answers] == [0, 0, 0, 1, 1, 0]
    for request, answer in zip(requests, answers, strict=True):
        assert recommender.answer([request], k=4)[0].items == answer.items
        if known := [item for item in request.history if item.startswith("item-")]:
            expected = recommend(history=known, k=4, generator=world.paths["generator"], reports=world.root / "none")
            assert answer.items == [row.item for row in expected]
            assert answer.titles == [row.title for row in expected]
            assert answer.scores == pytest.approx([row.score for row in expected], abs=1e-4)


def test_popular_items_are_those_of_training(world: World, recommender: Recommender) -> None:
    log, counts = world.splits, [0] * ITEMS
    for first, end in zip(log.offsets[:-1], log.train_end, strict=True):
        for item in log.items_N[first:end]:
            counts[item] += 1
    expected = sorted(range(ITEMS), key=lambda item: (-counts[item], item))[:5]
    assert recommender.answer([Request([])], k=5)[0].items == [f"item-{item}" for item in expected]


def test_seen_items_are_left_out_and_may_leave_nothing(recommender: Recommender) -> None:
    everything = [f"item-{item}" for item in range(ITEMS)]
    (few,) = recommender.answer([Request(["item-1", "item-2"])], k=99, filter_seen=True)
    assert len(few.items) == ITEMS - 2
    assert not {"item-1", "item-2"} & set(few.items)
    assert len(recommender.answer([Request(everything)], k=99)[0].items) == ITEMS


def test_times_decide_on_the_order(recommender: Recommender) -> None:
    plain, timed, numbers = recommender.answer(
        [
            Request(["item-1", "item-2"]),
            Request(["item-2", "item-1"], ["2024-09-06", "2024-09-05"]),
            Request(["item-2", "item-1"], [1725580800.0, 1725494400]),
        ]
    )
    assert plain.items == timed.items == numbers.items


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(["item-1"], ["soon"]), "the time soon cannot be read"),
        (Request(["item-1"], [None]), "the time None cannot be read"),
        (Request(["item-1"], []), "1 items and 0 times"),
    ],
)
def test_times_that_cannot_be_read_are_told(recommender: Recommender, request_: Request, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recommender.answer([request_])
