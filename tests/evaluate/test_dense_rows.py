"""The dense retriever in the evaluation: its ranks are those of brute force, by both rules."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from evaluated_world import ITEMS, MAX_HISTORY, World, write_dense

from pipeline.artifacts import read_json, read_parquet, write_json
from pipeline.decoding.item_index import build_index, states_of
from pipeline.decoding.ranking import generate_items, histories_of
from pipeline.errors import UserError
from pipeline.evaluate.recommend import recommend
from pipeline.evaluate.stage import run
from pipeline.generator import load_retriever
from pipeline.manifest import seal, sealed
from pipeline.metrics import summarise
from pipeline.packing.histories import Histories
from pipeline.results.ranks import Ranks
from pipeline.serving.batch import recommend_all


def evaluate(world: World, **changes: Any) -> dict[str, float]:
    return run(world.params, dense=world.root / "models/dense", **world.inputs, **changes)


def test_the_ranks_are_those_of_brute_force_by_both_rules(world: World) -> None:
    write_dense(world)
    metrics = evaluate(world)
    users = Ranks.read(world.paths["reports"] / "ranks.parquet").users
    retriever = load_retriever(world.root / "models/dense")
    assert retriever is not None
    model: Any = retriever.model.double()
    vectors_Id = model.item_vectors().detach()
    expected: dict[str, list[int]] = {"dense_rank": [], "dense_other_rank": []}
    for user, target in zip(users["user_id"], users["item_id"], strict=True):
        begin, end = world.splits.offsets[user], world.splits.test_target[user]
        history = np.asarray(world.splits.items_N[max(begin, end - MAX_HISTORY) : end])
        with torch.no_grad():  # one user at a time, without a batch
            state = model.begin(Histories.pack(history, np.array([0, len(history)]), torch.device("cpu")))
            scores_I = (state.states_Wd.double() @ vectors_Id.T)[0].numpy()
        for name, seen in (
            ("dense_rank", []),
            ("dense_other_rank", history),
        ):  # the headline's rule includes seen items
            order = [item for item in np.argsort(-scores_I, kind="stable") if item not in seen]
            rank = order.index(target) + 1 if target in order else 0
            expected[name].append(rank if rank <= 10 else 0)  # evaluate.beam
    for name, ranks in expected.items():
        assert users[name].tolist() == ranks
    for prefix, column in (("", "dense_rank"), ("seen_included_", "dense_rank"), ("seen_dropped_", "dense_other_rank")):
        assert metrics[f"dense_{prefix}recall_at_10"] == summarise(users[column].to_numpy())["recall_at_10"]
    apart = users[~users["tie"]]
    assert metrics["noties_dense_recall_at_10"] == summarise(apart["dense_rank"].to_numpy())["recall_at_10"]
    assert metrics["dense_train_seconds"] == 2.5


def test_the_ranking_is_exact_whatever_the_search_of_the_generator(world: World) -> None:
    write_dense(world)
    found = []
    for decoding in ("constrained", "unconstrained", "exact"):
        params = replace(world.params, evaluate=replace(world.params.evaluate, decoding=decoding))
        run(params, dense=world.root / "models/dense", **world.inputs)
        users = Ranks.read(world.paths["reports"] / "ranks.parquet").users
        found.append(users[["dense_rank", "dense_other_rank"]].to_numpy().tolist())
    assert found[0] == found[1] == found[2]


def test_the_headline_stands_in_metrics_json_and_the_rest_in_details(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dense(world)
    metrics = evaluate(world)
    headlines, details = (read_json(world.paths["reports"] / f"{name}.json") for name in ("metrics", "details"))
    assert [name for name in headlines if "dense" in name] == ["dense_recall_at_10"]
    assert {"dense_ndcg_at_10", "dense_evaluate_seconds", "dense_train_seconds"} <= set(details)
    row = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("dense retriever, seen included")
    )
    assert f"{metrics['dense_recall_at_10']:.4f}" in row


def test_without_a_retriever_everything_else_is_the_same(world: World) -> None:
    write_dense(world)
    with_it = evaluate(world)
    folder = world.root / "models/dense"
    for file in folder.iterdir():
        file.unlink()
    write_json(folder / "config.json", {"enabled": False})
    seal(folder, "dense")
    write_json(world.paths["reports"] / "dense.json", sealed({"enabled": False}, world.paths["reports"], ()))
    without = evaluate(world)
    assert not [name for name in without if "dense" in name]
    with_it, without = ({k: v for k, v in found.items() if "fused" not in k} for found in (with_it, without))
    assert "dense_rank" not in Ranks.read(world.paths["reports"] / "ranks.parquet").users
    measured = {"evaluate_seconds", "users_per_second"}
    assert {**with_it, **without} | dict.fromkeys(measured, 0) == with_it | dict.fromkeys(measured, 0)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    again = {name: value for name, value in evaluate(world).items() if "fused" not in name}
    assert {name: value for name, value in again.items() if name not in measured} == {
        name: value for name, value in without.items() if name not in measured
    }


def test_a_retriever_of_other_splits_is_refused_by_name(world: World) -> None:
    write_dense(world, splits="0" * 64)
    with pytest.raises(UserError, match="models/dense was trained on other splits"):
        evaluate(world)


def test_a_damaged_retriever_is_refused_by_name(world: World) -> None:
    write_dense(world)
    path = world.root / "models/dense/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(
        UserError, match=r"models/dense/model\.safetensors is not the file that .*manifest\.json lists"
    ) as error:
        evaluate(world)
    assert "python -m pipeline dense" in error.value.fix


def test_the_retriever_searches_once_per_user_of_each_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dense(world)
    searched: list[int] = []

    def counted(model: Any, items: Any, offsets: Any, **options: Any) -> Any:
        if model.config.name == "sasrec":
            searched.append(len(offsets) - 1)
        return generate_items(model, items, offsets, **options)

    monkeypatch.setattr("pipeline.views.retrieval.generate_items", counted)
    monkeypatch.setattr("pipeline.decoding.ranking.generate_items", counted)
    evaluate(world)
    positions = [world.splits.targets(part)[1] for part in ("valid", "test")]
    with_history = sum(int((np.diff(world.splits.history_index(part)[1]) > 0).sum()) for part in positions)
    assert sum(searched) == with_history


def test_a_large_catalogue_is_searched_some_windows_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dense(world)
    evaluate(world)
    expected = (world.paths["reports"] / "ranks.parquet").read_bytes()
    monkeypatch.setattr("pipeline.decoding.ranking.LOGITS", 3 * ITEMS)
    evaluate(world)
    assert (world.paths["reports"] / "ranks.parquet").read_bytes() == expected


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_index_ranks_and_answers_as_the_products_of_all_items(world: World, kind: str) -> None:
    write_dense(world)
    folder = world.root / "models/dense"
    params = replace(world.params, evaluate=replace(world.params.evaluate, ranking="fused", filter_seen=True))

    def answers() -> tuple[Any, list[Any]]:
        (world.paths["reports"] / "metrics.json").unlink(missing_ok=True)
        run(params, dense=folder, **world.inputs)
        users = Ranks.read(world.paths["reports"] / "ranks.parquet").users
        paths: Any = {**world.paths, "interactions": world.root / "data/interactions"}
        shown = [[row.item for row in recommend(user=f"user-{user}", k=8, **paths)] for user in range(0, 40, 5)]
        recommend_all(world.root / "all.parquet", k=5, device="cpu", **paths)
        table = read_parquet(world.root / "all.parquet")
        return users, [*shown, table["item"].tolist()]

    users, shown = answers()
    retriever = load_retriever(folder)
    assert retriever is not None
    model: Any = retriever.model
    items_N, offsets = histories_of(world.splits, world.splits.targets("valid")[1])
    filled = np.append(True, np.diff(offsets) > 0)
    vectors = model.item_vectors().detach().numpy()
    index, figures = build_index(kind, vectors, states_of(model, items_N, offsets[filled]), seed=1)
    assert figures["recall_at_10"] == 1
    index.write(folder)
    seal(folder, "dense")
    by_index, shown_by_index = answers()
    assert by_index["dense_rank"].tolist() == users["dense_rank"].tolist()
    assert by_index["dense_other_rank"].tolist() == users["dense_other_rank"].tolist()
    assert by_index["fused_rank"].tolist() == users["fused_rank"].tolist()
    assert shown_by_index == shown
