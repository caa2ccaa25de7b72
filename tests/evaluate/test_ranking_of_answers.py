"""A trained model answers by the ranking of its evaluation, in every way of asking it."""

import json
from dataclasses import replace
from typing import Any

import pytest
from evaluated_world import MAX_HISTORY, World, write_dense, write_generator
from settings import read_params

from pipeline.artifacts import read_parquet, write_json
from pipeline.errors import UserError
from pipeline.evaluate.recommend import Recommendation, recommend
from pipeline.evaluate.shares import shares_text, view_shares
from pipeline.evaluate.stage import run
from pipeline.manifest import seal
from pipeline.results.companions import companions
from pipeline.results.ranks import Ranks, answers_by
from pipeline.results.serving_facts import serving_facts
from pipeline.serving.answers import Recommender, Request
from pipeline.serving.batch import recommend_all

RANKINGS = ("generator", "dense", "counting", "fused")


def evaluate(world: World, ranking: str, **changes: Any) -> dict[str, float]:
    write_dense(world)
    config = replace(world.params.evaluate, ranking=ranking, filter_seen=True, **changes)  # type: ignore[arg-type]
    return run(replace(world.params, evaluate=config), **world.inputs)


def ask(world: World, **arguments: Any) -> list[Recommendation]:
    settings: Any = {**world.paths, "interactions": world.root / "data/interactions", **arguments}
    return recommend(**settings)


def history_of(world: World, user: int) -> list[str]:
    items = world.splits.items_N[world.splits.offsets[user] : world.splits.offsets[user + 1] - 1]
    return [f"item-{item}" for item in items[-MAX_HISTORY:]]


@pytest.mark.parametrize("ranking", RANKINGS)
def test_a_target_has_the_rank_in_an_answer_that_the_evaluation_gave_it(world: World, ranking: str) -> None:
    metrics = evaluate(world, ranking)
    assert RANKINGS[int(metrics["ranking"])] == ranking == answers_by(world.paths["reports"])
    users = Ranks.read(world.paths["reports"] / "ranks.parquet").users
    columns = {"fused": "fused_rank", "dense": "dense_rank"}
    if ranking in columns:
        assert users["rank"].tolist() == users[columns[ranking]].tolist()
    assert ("generator_rank" in users) == (ranking != "generator")
    write_json(world.root / "facts.json", {**serving_facts(world.paths["splits"]), "ranking": ranking})
    served = Recommender(world.paths["generator"], world.root / "facts.json")
    apart = 0
    for user in range(0, len(users), 3):
        history = history_of(world, user)
        shown = ask(world, history=history, k=10)
        assert not {row.item for row in shown} & set(history)
        items = [row.item for row in shown]
        (answer,) = served.answer([Request(history)], k=10, filter_seen=True)
        assert answer.items == items
        target, rank = f"item-{users['item_id'][user]}", users["rank"][user]
        if ranking == "counting":  # of equal counts, the baseline ranks popular items first
            apart += bool(0 < rank <= 10) != (target in items)
        else:
            assert (items.index(target) + 1 if target in items else 0) == (rank if rank <= 10 else 0)
    assert apart <= 3


def test_the_export_for_all_users_says_what_recommend_says(world: World) -> None:
    evaluate(world, "fused")
    settings: Any = {**world.paths, "interactions": world.root / "data/interactions"}
    recommend_all(world.root / "all.parquet", k=5, device="cpu", **settings)
    table = read_parquet(world.root / "all.parquet")
    for user in (0, 7, 21):
        rows = ask(world, user=f"user-{user}", k=5)
        mine = table[table["user"] == f"user-{user}"]
        assert mine["item"].tolist() == [row.item for row in rows]
        assert mine["score"].tolist() == pytest.approx([row.score for row in rows], abs=1e-4)


def test_shares_of_the_views_add_up_and_follow_the_recommended_order(world: World) -> None:
    evaluate(world, "fused")
    settings: Any = {**world.paths, "interactions": world.root / "data/interactions"}
    rows = view_shares(user="user-3", k=6, **settings)
    assert [row.item for row in rows] == [row.item for row in ask(world, user="user-3", k=6)]
    for row in rows:
        assert list(row.shares) == ["generator", "dense", "counting"]
        assert sum(row.shares.values()) == pytest.approx(1)
        assert min(row.shares.values()) >= 0
    assert len(shares_text(rows).splitlines()) == 8
    evaluate(world, "generator")
    with pytest.raises(UserError, match="not by fused views"):
        view_shares(user="user-3", **settings)


def test_weights_of_other_models_are_refused(world: World) -> None:
    evaluate(world, "fused")
    assert set(companions(world.paths["generator"], "fused")) == {"counting", "fusion", "dense"}
    path = world.root / "models/fusion/fusion.json"
    facts = json.loads(path.read_text())
    write_json(path, {**facts, "models": {**facts["models"], "counting": "another"}})
    seal(path.parent, "evaluate")
    with pytest.raises(UserError, match="weights of other models"):
        ask(world, history=["item-1"])


def test_another_ranking_or_other_companions_are_another_served_model(world: World) -> None:
    served = []
    for ranking, seed in (("generator", 0), ("fused", 0), ("counting", 0), ("fused", 4)):
        write_generator(world, seed)
        evaluate(world, ranking)
        served.append(Ranks.read(world.paths["reports"] / "ranks.parquet").origin)
    assert len({origin.served for origin in served}) == 4
    assert served[0].served == served[0].model == served[1].model


def test_the_exact_form_is_ranked_where_the_fused_views_are_the_ranking(world: World) -> None:
    keys = {"fused_exact_seconds", "fused_exact_recall_at_10"}
    for ranking in ("generator", "fused"):
        (world.paths["reports"] / "metrics.json").unlink(missing_ok=True)
        metrics = evaluate(world, ranking)
        assert "fused_recall_at_10" in metrics
        assert keys & metrics.keys() == (keys if ranking == "fused" else set())
        assert ("exact_rank" in Ranks.read(world.paths["reports"] / "ranks.parquet").users) == (ranking == "fused")


def test_a_ranking_by_a_retriever_that_is_not_there_is_refused_before_anything_runs(world: World) -> None:
    with pytest.raises(UserError, match=r"dense\.enabled is false"):
        read_params({"evaluate": {"ranking": "dense"}, "dense": {"enabled": False}})
    config = replace(world.params.evaluate, ranking="dense")
    with pytest.raises(UserError, match="there is no dense retriever"):
        run(replace(world.params, evaluate=config), **world.inputs)
