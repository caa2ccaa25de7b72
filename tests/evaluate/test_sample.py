"""Evaluation of a sample has the rows of the whole evaluation, for the users with the smallest hashes."""

from dataclasses import replace

import numpy as np
import pytest
from evaluated_world import USERS, World

from pipeline.evaluate.sample import PURPOSE, Evaluated
from pipeline.evaluate.stage import run
from pipeline.hashing import hasher
from pipeline.metrics import summarise
from pipeline.results.ranks import Ranks


def with_users(world: World, users: int) -> World:
    evaluate = replace(world.params.evaluate, users=users, filter_seen=True)
    return replace(world, params=replace(world.params, evaluate=evaluate))


def drawn(users: int) -> list[int]:
    """The sample by its slow definition."""
    keys = [int(hasher(PURPOSE)(np.array([user], np.uint64))[0]) for user in range(USERS)]
    return sorted(np.argsort(keys)[:users].tolist())


def test_a_sample_has_its_users_rows_of_the_whole(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.paths["reports"] / "ranks.parquet"
    everyone = with_users(world, 0)
    whole_metrics = run(everyone.params, **world.inputs)
    whole = Ranks.read(path)
    assert "users_in_all" not in whole_metrics
    assert f"all {USERS} users" in capsys.readouterr().out
    metrics = run(with_users(world, 13).params, **world.inputs)
    sample = Ranks.read(path)
    assert (metrics["users"], metrics["users_in_all"]) == (13, USERS)
    assert sample.users["user_id"].tolist() == drawn(13)
    rows = whole.users[whole.users["user_id"].isin(drawn(13))].reset_index(drop=True)
    # Weights of the others are those that are best for the users of the validation, who are fewer too.
    weighted = ("directed_rank", "fused_rank", "fused_other_rank", "exact_rank")
    columns = [name for name in rows if name not in weighted]
    assert {"rank", "other_rank", "cooccurrence_rank", "popularity_rank"} <= set(columns)
    assert sample.users[columns].equals(rows[columns])
    assert metrics["recall_at_10"] == summarise(rows["rank"].to_numpy())["recall_at_10"]
    assert metrics["recall_at_10_low"] <= metrics["recall_at_10"] <= metrics["recall_at_10_high"]
    printed = capsys.readouterr().out
    assert "sample of 13 users" in printed
    assert f"a sample of 13 of {USERS} test users" in printed
    assert sample.origin.protocol == whole.origin.protocol + ", a sample of 13 users"


def test_enough_users_is_no_sample(world: World) -> None:
    for users in (0, USERS, 10**6):
        evaluated = Evaluated.of(world.splits, users)
        assert evaluated.splits is world.splits
        assert not evaluated.sampled
        assert evaluated.words == ""
        assert evaluated.figures == {}


def test_users_of_validation_are_bounded_too_where_more_have_a_validation_target(world: World) -> None:
    few = replace(world.splits, test_target=np.where(np.arange(USERS) < 5, world.splits.test_target, -1))
    evaluated = Evaluated.of(few, 8)
    assert not evaluated.sampled
    assert evaluated.splits.targets("test")[0].tolist() == [0, 1, 2, 3, 4]
    assert evaluated.splits.targets("valid")[0].tolist() == drawn(8)
