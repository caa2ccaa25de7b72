"""The export for a hub: it loads back, its card says what the files say, and it is whole or not there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluated_world import World, write_dense

from pipeline.artifacts import write_json
from pipeline.errors import UserError
from pipeline.evaluate.recommend import recommend
from pipeline.evaluate.stage import run as evaluate
from pipeline.generator import load_generator
from pipeline.results.ranks import Ranks
from pipeline.serving.huggingface import export_model, model_card


def exported(world: World, folder: Path, ranking: str = "generator") -> str:
    config = replace(world.params.evaluate, ranking=ranking, filter_seen=True)  # type: ignore[arg-type]
    evaluate(replace(world.params, evaluate=config), **world.inputs)
    write_json(world.root / "data/interactions/ingest.json", {"users": 40, "items": 20, "interactions": 234})
    export_model(
        folder,
        world.params.plain(),
        generator=world.paths["generator"],
        reports=world.paths["reports"],
        interactions=world.root / "data/interactions",
        splits=world.paths["splits"],
    )
    return (folder / "README.md").read_text()


def test_the_folder_loads_back_and_its_card_has_the_metrics_with_intervals(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "out/model"
    card = exported(world, folder)
    files = [(world.paths["reports"] / name).read_text() for name in ("details.json", "metrics.json")]
    metrics = json.loads(files[0]) | json.loads(files[1])
    row = next(line for line in card.splitlines() if line.startswith("| recall@10 "))
    assert f"{metrics['recall_at_10']:.4f}" in row
    assert f"{metrics['recall_at_10_low']:.4f} to {metrics['recall_at_10_high']:.4f}" in row
    assert "40 users, 20 items, 234 interactions" in card
    mine = recommend(history=["item-1"], generator=folder, reports=tmp_path / "none")
    assert mine == recommend(history=["item-1"], generator=world.paths["generator"], reports=tmp_path / "none")
    with pytest.raises(UserError, match="is there already"):
        exported(world, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_card_of_a_network_over_items_speaks_of_no_semantic_ids(world: World, tmp_path: Path) -> None:
    write_dense(world)
    assert "- semantic-ids" in exported(world, tmp_path / "model")
    reports = world.paths["reports"]
    files = [json.loads((reports / name).read_text()) for name in ("details.json", "metrics.json")]
    ingest = {"users": 40, "items": 20, "interactions": 234}
    loaded = load_generator(world.paths["generator"].parent / "dense")
    ranks = Ranks.read(reports / "ranks.parquet")
    card = model_card(loaded, files[0] | files[1], ranks, ingest, world.params.plain())
    assert "# Recommender over items: full on" in card
    assert "The model (sasrec, " in card
    assert "predicts the next item after a history of at most" in card
    assert "emantic" not in card.split("## Data")[0]
    assert "1 codes" not in card


@pytest.mark.parametrize("ranking", ["dense", "counting", "fused"])
def test_a_ranking_by_other_views_takes_them_along(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ranking: str
) -> None:
    write_dense(world)
    card = exported(world, tmp_path / "model", ranking)
    assert f"`evaluate.ranking: {ranking}`" in card
    paths: Any = {**world.paths, "interactions": world.root / "data/interactions"}
    expected = recommend(history=["item-0", "item-1", "item-2"], k=10, **paths)
    capsys.readouterr()
    # The code of the card, as a reader of the folder runs it, without the project.
    monkeypatch.chdir(tmp_path / "model")
    for name in ("models", "reports", "data"):
        (world.root / name).rename(world.root / f"{name}-gone")
    exec(card.split("```python")[1].split("```")[0], {})
    assert str([row.item for row in expected]) in capsys.readouterr().out
