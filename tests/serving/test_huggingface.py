"""The export for a hub: it loads back, its card says what the files say, and it is whole or not there."""

import json
from pathlib import Path

import pytest
from evaluated_world import World

from pipeline.artifacts import write_json
from pipeline.errors import UserError
from pipeline.evaluate.recommend import recommend
from pipeline.evaluate.stage import run as evaluate
from pipeline.serving.huggingface import export_model


def exported(world: World, folder: Path) -> str:
    evaluate(world.params, **world.inputs)
    write_json(world.root / "data/interactions/ingest.json", {"users": 40, "items": 20, "interactions": 234})
    export_model(
        folder,
        world.params.plain(),
        generator=world.paths["generator"],
        reports=world.paths["reports"],
        interactions=world.root / "data/interactions",
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
