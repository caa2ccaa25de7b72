"""A user who had every item: an answer that no item is left, and no error, from every command alike."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import Done
from command_line import run as run
from evaluated_world import MAX_HISTORY, USERS, World, random_splits, write_generator
from settings import some_params

from pipeline.artifacts import write_json, write_parquet
from pipeline.results.serving_facts import serving_facts
from pipeline.serving.answers import Recommender, Request

ITEMS = 3
LEFT = "no item is left: every item is in the history; --with-seen ranks these too"
EVERYTHING = [f"item-{item}" for item in range(ITEMS)]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings_given_back: None) -> World:  # noqa: ARG001
    """A catalogue of three items, of which some users had all; it is the current folder."""
    log = random_splits(np.random.default_rng(0))
    summary = {"max_history": MAX_HISTORY, "items": ITEMS}
    log = replace(log, items_N=(log.items_N % ITEMS).astype(np.int32), summary=summary)
    made = World(tmp_path, log, some_params())
    log.write(made.paths["splits"])
    write_generator(made, items=ITEMS)
    users = pd.DataFrame({"user_id": np.arange(USERS, dtype=np.int32), "raw_id": [f"user-{u}" for u in range(USERS)]})
    write_parquet(tmp_path / "data/interactions/users.parquet", users)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return made


def seen_by_user(world: World) -> list[set[int]]:
    """The items of the part of each user's history that the model sees."""
    log = world.splits
    ends = zip(log.offsets[:-1], log.offsets[1:], strict=True)
    return [set(log.items_N[max(first, end - MAX_HISTORY) : end].tolist()) for first, end in ends]


def test_recommend_says_that_no_item_is_left(small: World, run: Callable[..., Done]) -> None:
    for user, seen in enumerate(seen_by_user(small)[:12]):
        done = run("recommend", "--user", f"user-{user}", "--filter-seen")
        assert done.code == 0
        assert (done.out.strip() == LEFT) == (len(seen) == ITEMS)
        assert len(done.out.splitlines()) == max(ITEMS - len(seen), 1)
        rows = json.loads(run("recommend", "--user", f"user-{user}", "--filter-seen", "--json").out)
        assert len(rows) == ITEMS - len(seen)
        assert len(run("recommend", "--user", f"user-{user}", "--with-seen").out.splitlines()) == ITEMS
    done = run("recommend", "--history", ",".join(EVERYTHING), "--filter-seen", "-q")
    assert (done.code, done.out.strip(), done.err) == (0, LEFT, "")


def test_explain_and_sids_show_every_item(small: World, run: Callable[..., Done]) -> None:  # noqa: ARG001
    done = run("explain", "--history", ",".join(EVERYTHING))
    assert (done.code, len(done.out.splitlines())) == (0, 1 + ITEMS)
    shown = run("sids", "--history", ",".join(EVERYTHING), "--model", "models/generator", "--json").out
    assert len(json.loads(shown)) == ITEMS


def test_the_file_of_all_users_has_no_row_of_such_a_user(small: World, run: Callable[..., Done]) -> None:
    done = run("recommend", "--all", "--output", "recs.parquet", "--filter-seen")
    assert done.code == 0
    counts = pd.read_parquet("recs.parquet")["user"].value_counts().to_dict()
    left = {f"user-{user}": ITEMS - len(seen) for user, seen in enumerate(seen_by_user(small)) if len(seen) < ITEMS}
    assert counts == left
    assert 0 < len(left) < USERS
    assert done.out.strip() == f"recs.parquet: {len(left)} users"
    told = f"{USERS - len(left)} of {USERS} users have no row: every item is in their history; --with-seen ranks these"
    assert told in done.err
    done = run("recommend", "--all", "--output", "recs.parquet", "--with-seen")
    assert "no row" not in done.err
    assert len(pd.read_parquet("recs.parquet")) == ITEMS * USERS


def test_a_served_model_says_that_nothing_is_left(small: World, tmp_path: Path) -> None:
    write_json(tmp_path / "serving.json", serving_facts(small.paths["splits"]))
    served = Recommender(small.paths["generator"], tmp_path / "serving.json")
    requests = [Request(EVERYTHING), Request(EVERYTHING[:2]), Request([])]
    answers = served.answer(requests, filter_seen=True)
    assert [(len(answer.items), answer.source) for answer in answers] == [(0, "none"), (1, "model"), (3, "popular")]
    assert [answer.source for answer in served.answer(requests)] == ["model", "model", "popular"]
