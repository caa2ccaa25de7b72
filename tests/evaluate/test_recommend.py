"""What is recommended: the best items for all that is known of a user; an unknown name is answered with near ones."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from evaluated_world import ITEMS, MAX_HISTORY, World, random_splits, write_generator
from settings import some_params
from typed import present

from pipeline.artifacts import write_parquet
from pipeline.backbones.hstu import Hstu, HstuBlock
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.errors import UserError
from pipeline.evaluate.recommend import Recommendation, recommend
from pipeline.evaluate.stage import run
from pipeline.evaluate.typed_history import Typed, read_history
from pipeline.generator import load_generator, save_generator
from pipeline.packing.histories import Histories


def ask(world: World, **arguments: Any) -> list[Recommendation]:
    settings: dict[str, Any] = {**world.paths, **arguments}
    return recommend(interactions=world.root / "data/interactions", **settings)


def exact(world: World, history: list[int]) -> tuple[list[str], np.ndarray]:
    """Raw ids by descending log-probability after the most recent items of a history, and the log-probabilities."""
    model = load_generator(world.paths["generator"]).model
    recent = np.array(history[-MAX_HISTORY:])
    scores = score_catalogue(model, Histories.pack(recent, np.array([0, len(recent)])))[0].numpy()
    order = np.argsort(-scores, kind="stable")
    return [f"item-{item}" for item in order], scores[order]


def test_texts_of_the_command_line_are_the_list_of_their_ids(world: World) -> None:
    listed = ask(world, history=["item-1", "item-2", "item-3"])
    assert ask(world, history=[Typed("item-1, item-2"), Typed('"item-3"')]) == listed


def test_a_user_is_forecast_from_the_whole_sequence_held_out_items_too(world: World) -> None:
    for user in range(5):
        sequence = world.splits.items_N[world.splits.offsets[user] : world.splits.offsets[user + 1]].tolist()
        names, scores = exact(world, sequence)
        shown = ask(world, user=f"user-{user}", k=ITEMS)
        assert [row.item for row in shown] == names
        np.testing.assert_allclose([row.score for row in shown], scores, rtol=1e-5)


def test_a_history_of_raw_ids_says_the_same_as_the_user_who_has_it(world: World) -> None:
    sequence = world.splits.items_N[world.splits.offsets[3] : world.splits.offsets[4]]
    assert ask(world, history=[f"item-{item}" for item in sequence], k=7) == ask(world, user="user-3", k=7)


def test_only_the_model_is_needed_for_a_history(world: World) -> None:
    for path in (*(world.root / "data").rglob("*.npy"), *world.paths["reports"].iterdir()):
        path.unlink()
    assert len(ask(world, history=["item-1"], k=3)) == 3


def test_k_items_come_with_titles_and_more_than_there_are_is_no_error(world: World) -> None:
    rows = ask(world, history=["item-2"], k=3)
    assert len(rows) == 3
    assert len(ask(world, history=["item-2"], k=10 * ITEMS)) == ITEMS
    for row in ask(world, history=["item-2"], k=ITEMS):
        number = int(row.item.removeprefix("item-"))
        assert row.title == (f"Title {number}" if number % 4 else "")


def test_seen_items_can_be_left_out(world: World) -> None:
    names, _ = exact(world, [1, 2, 3])
    shown = [row.item for row in ask(world, history=["item-1", "item-2", "item-3"], k=ITEMS, filter_seen=True)]
    assert shown == [name for name in names if name not in ("item-1", "item-2", "item-3")]


def test_a_history_of_the_whole_catalogue_leaves_nothing_to_recommend(tmp_path: Path) -> None:
    world = World(tmp_path, random_splits(np.random.default_rng(0)), some_params())
    world.splits.write(world.paths["splits"])
    write_generator(world, items=3)
    assert ask(world, history=["item-0", "item-1", "item-2"], filter_seen=True) == []


def test_an_unknown_user_or_item_is_met_with_near_ones(world: World) -> None:
    with pytest.raises(UserError, match="user 'user-99' is not known") as refused:
        ask(world, user="user-99")
    assert "user-9" in refused.value.fix
    with pytest.raises(UserError, match=r"item 'itm-3' is not known \(and 1 more\)") as refused:
        ask(world, history=["item-1", "itm-3", "itm-4"])
    assert "item-3" in refused.value.fix


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a user or a history"),
        ({"user": "user-1", "history": ["item-1"]}, "give either a user or a history"),
        ({"history": []}, "the history is empty"),
        ({"user": "user-1", "k": 0}, "k is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(world: World, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask(world, **arguments)


def test_a_model_beside_the_reports_of_another_is_refused(world: World) -> None:
    run(world.params, **world.inputs)
    ask(world, user="user-1")
    write_generator(world, seed=3)
    with pytest.raises(UserError, match="another model"):
        ask(world, user="user-1")


def test_a_model_of_other_splits_is_refused(world: World) -> None:
    replace(world.splits, items_N=world.splits.items_N[::-1].copy()).write(world.paths["splits"])
    with pytest.raises(UserError, match="trained on other splits"):
        ask(world, user="user-1")


def test_users_of_another_log_are_refused(world: World) -> None:
    write_parquet(world.root / "data/interactions/users.parquet", pd.DataFrame({"user_id": [0], "raw_id": ["user-1"]}))
    with pytest.raises(UserError, match="different logs"):
        ask(world, user="user-1")


def timed_world(world: World) -> Hstu:
    """A world whose model reads times, and cares for them."""
    write_generator(world, backbone="hstu")
    model = load_generator(world.paths["generator"]).model
    assert isinstance(model, Hstu)
    with torch.no_grad():
        for block in model.blocks:
            assert isinstance(block, HstuBlock)
            present(block.time_bias).normal_(std=30)
    loaded = load_generator(world.paths["generator"])
    frame = loaded.items[["item_id", "raw_id", "title"]]
    extra = {key: value for key, value in loaded.config.items() if key not in ("backbone", "widths")}
    save_generator(world.paths["generator"], model, loaded.catalogue, frame, extra)
    return model


def scores(model: Hstu, items: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Log-probabilities of the whole catalogue after these items, the best first."""
    found = score_catalogue(model, Histories.pack(items, np.array([0, len(items)]), times_N=times))[0]
    return found.sort(descending=True).values.numpy()


def test_a_model_that_reads_times_gets_those_of_the_user(world: World) -> None:
    model = timed_world(world)
    own = slice(world.splits.offsets[4], world.splits.offsets[5])
    items, times = (array[own][-MAX_HISTORY:] for array in (world.splits.items_N, world.splits.timestamps_N))
    shown = ask(world, user="user-4", k=ITEMS)
    np.testing.assert_allclose([row.score for row in shown], scores(model, items, times), rtol=1e-5)
    assert not np.allclose(scores(model, items, times), scores(model, items, times * 0))


DAY = 86_400
NOON = 1_599_998_400  # 2020-09-13 12:00:00 UTC


@pytest.mark.parametrize(
    "history",
    [
        [f"item-7@{NOON}", f"item-2@{NOON + DAY}", f"item-5@{NOON + 9 * DAY}"],
        ["item-7@2020-09-13T12:00:00Z", "item-2@2020-09-14T14:00:00+02:00", "item-5@2020-09-22 12:00 UTC"],
        ["item-7@2020-09-13", "item-2@2020-09-14", "item-5@2020-09-22"],
        [f"item-7@{NOON}000", f"item-2@{NOON + DAY}000", f"item-5@{NOON + 9 * DAY}000"],
        ["item-7@0", f"item-2@{DAY}", f"item-5@{9 * DAY}"],
        [f"item-5@{NOON + 9 * DAY}", f"item-7@{NOON}", f"item-2@{NOON + DAY}"],
        [
            ("item-7", datetime(2020, 9, 13, 12, tzinfo=UTC)),
            ("item-2", "2020-09-14T12:00Z"),
            "item-5@2020-09-22T12:00Z",
        ],
        [("item-7", NOON), ("item-2", float(NOON + DAY)), ("item-5", str(NOON + 9 * DAY))],
    ],
)
def test_a_history_with_times_is_read_by_a_model_that_wants_them(
    world: World, capsys: pytest.CaptureFixture[str], history: list[Any]
) -> None:
    model = timed_world(world)
    shown = ask(world, history=history, k=ITEMS)
    expected = scores(model, np.array([7, 2, 5]), np.array([0, DAY, 9 * DAY]))
    np.testing.assert_allclose([row.score for row in shown], expected, rtol=1e-5)
    notes = capsys.readouterr().err
    assert ("order of its times" in notes) == (history[0] == f"item-5@{NOON + 9 * DAY}")
    assert ("are an order" in notes) == (history[0] == "item-7@0")


def test_a_bare_history_has_equal_steps_for_a_model_that_wants_times(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    spread = replace(world.splits, timestamps_N=np.asarray(world.splits.timestamps_N) * 7)
    spread.write(world.paths["splits"])
    model = timed_world(world)
    gaps = [np.diff(spread.timestamps_N[a:b]) for a, b in pairwise(spread.offsets)]
    step = int(np.median(np.concatenate(gaps)))
    shown = ask(world, history=["item-7", "item-2", "item-5"], k=ITEMS)
    expected = scores(model, np.array([7, 2, 5]), step * np.arange(3))
    np.testing.assert_allclose([row.score for row in shown], expected, rtol=1e-5)
    assert f"each item counts as {step} s after the one before" in capsys.readouterr().err


def test_times_order_the_items_for_a_model_without_times_too(world: World) -> None:
    plain = ask(world, history=["item-1", "item-2"], k=5)
    assert ask(world, history=["item-2@2020-09-14", "item-1@2020-09-13"], k=5) == plain


CATALOGUE = pd.DataFrame({"raw_id": ["a", "a@5", "b@home.org", "7", "b"]})


@pytest.mark.parametrize(
    ("history", "items", "times"),
    [
        (["a", "a@5"], [0, 1], None),  # every entry is an item as a whole
        (["a@5", "7@6"], [0, 3], [5, 6]),  # 7@6 is none, so each has its time
        (["a@5@4", "7.0@6"], [1, 3], [4, 6]),
        (["b@home.org@2020-09-13T12:00Z"], [2], [NOON]),
        (["b@home.org", "a"], [2, 0], None),
        ([("a@5", 3)], [1], [3]),
        ([f"a@{NOON}", f"b@{NOON + 1}000", "7@2020-09-13T12:00:02Z"], [0, 4, 3], [NOON, NOON + 1, NOON + 2]),
        ([" a @ 5 ", "b@6"], [0, 4], [5, 6]),
        ([], [], None),
    ],
)
def test_an_at_sign_in_an_id_is_told_from_a_time(history: list[Any], items: list[int], times: list[int] | None) -> None:
    found, seconds = read_history(history, CATALOGUE, Path("items.parquet"), wants_times=False)
    assert (found.tolist(), None if seconds is None else seconds.tolist()) == (items, times)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (["a@1600000000", "b"], "'b' has no time, and other items of the history have one"),
        (["a@1600000000", "b@home.org"], "'b@home.org' has no time"),
        (["a@soon"], "the time of 'a' cannot be read: soon"),
        (["a@2020-02-30"], "the time of 'a' cannot be read: 2020-02-30"),
        (["a@1600000000", "b@1600000000", "7@3"], "some times of the history are an order"),
        (["a@-3"], "the time of 'a' cannot be read: -3"),
        (["zz@1600000000"], "item 'zz' is not known"),
        (["zz@home.org"], "item 'zz@home.org' is not known"),
        (["a", "zz"], "item 'zz' is not known"),
        ([("zz", 5)], "item 'zz' is not known"),
        (["a@"], "the time of 'a' cannot be read"),
    ],
)
def test_an_entry_that_is_no_item_at_a_time_is_named(history: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_history(history, CATALOGUE, Path("items.parquet"), wants_times=False)


def test_seen_items_are_dropped_as_in_the_evaluation_of_the_model(world: World) -> None:
    history = ["item-1", "item-2", "item-3"]
    assert {row.item for row in ask(world, history=history, k=ITEMS)} >= set(history)  # never evaluated
    for rule in (True, False):
        run(replace(world.params, evaluate=replace(world.params.evaluate, filter_seen=rule)), **world.inputs)
        shown = {row.item for row in ask(world, history=history, k=ITEMS)}
        assert shown.isdisjoint(history) is rule
        assert {row.item for row in ask(world, history=history, k=ITEMS, filter_seen=False)} >= set(history)
