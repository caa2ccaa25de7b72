"""Which tokens of a history are shown as kept: those that the model's encoder keeps."""

import json
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from evaluated_world import MAX_HISTORY, WIDTHS, World, write_generator

from pipeline.artifacts import read_json, write_json
from pipeline.errors import UserError
from pipeline.evaluate.explain import ItemTokens, ItemWeights, explain, explanation_text
from pipeline.generator import Generator, load_generator
from pipeline.manifest import seal
from pipeline.packing.histories import Histories


def prune(world: World, **settings: Any) -> None:
    """Make the model of the world one that was trained by rastp."""
    write_generator(world, strategy="rastp")
    path = world.paths["generator"] / "config.json"
    config = read_json(path)
    write_json(path, {**config, "rastp": {**config["rastp"], "after_layer": 1, "min_tokens": 1, **settings}})
    seal(path.parent, "train")


Row = TypeVar("Row", ItemTokens, ItemWeights)


def ask(world: World, kind: type[Row], **arguments: Any) -> tuple[Generator, list[Row]]:
    """The result of `explain`, whose rows must all be of one kind."""
    settings: dict[str, Any] = {**world.paths, **arguments}
    loaded, found = explain(interactions=world.root / "data/interactions", **settings)
    rows = [row for row in found if isinstance(row, kind)]
    assert len(rows) == len(found)
    return loaded, rows


def test_each_item_of_a_user_is_shown_with_its_codes_and_which_are_kept(world: World) -> None:
    prune(world)
    _, rows = ask(world, ItemTokens, user="user-3")
    loaded = load_generator(world.paths["generator"])
    sequence = world.splits.items_N[world.splits.offsets[3] : world.splits.offsets[4]][-MAX_HISTORY:]
    with torch.no_grad():
        kept_NS = loaded.model.kept_tokens(Histories.pack(sequence, np.array([0, len(sequence)])))
    assert [row.item for row in rows] == [f"item-{item}" for item in sequence]
    assert [row.codes for row in rows] == loaded.catalogue.codes_IL[torch.as_tensor(sequence).long()].tolist()
    assert [row.kept for row in rows] == kept_NS.tolist()
    assert sum(kept for row in rows for kept in row.kept[: len(WIDTHS)]) == len(rows) * len(WIDTHS) // 3


def test_a_user_and_the_list_of_the_same_items_are_explained_alike(world: World) -> None:
    prune(world)
    sequence = world.splits.items_N[world.splits.offsets[5] : world.splits.offsets[6]]
    assert (
        ask(world, ItemTokens, user="user-5")[1]
        == ask(world, ItemTokens, history=[f"item-{item}" for item in sequence])[1]
    )


def test_the_table_has_a_line_per_item_with_dashes_for_what_is_dropped(world: World) -> None:
    prune(world)
    loaded, rows = ask(world, ItemTokens, user="user-3")
    title, *lines = explanation_text(loaded, rows).splitlines()
    count = sum(kept for row in rows for kept in row.kept)
    assert title == f"rastp: {count} of {len(rows) * 4} tokens of {len(rows)} items are kept after encoder block 1"
    for line, row in zip(lines, rows, strict=True):
        name, *marks = line.split()[:5]
        assert name == row.item
        expected = [str(code) if kept else "-" for code, kept in zip(row.codes, row.kept, strict=False)]
        assert marks == [*expected, "|" if row.kept[-1] else "-"]
    assert json.loads(json.dumps([vars(row) for row in rows]))[0]["kept"] == rows[0].kept


def test_pruning_of_training_alone_is_shown_and_said(world: World) -> None:
    prune(world, at_eval=False)
    loaded, rows = ask(world, ItemTokens, user="user-3")
    assert "after encoder block 1, in training only" in explanation_text(loaded, rows)
    assert not all(all(row.kept) for row in rows)


def test_without_pruning_all_is_kept(world: World) -> None:
    loaded, rows = ask(world, ItemTokens, history=["item-1", "item-2"])
    assert all(all(row.kept) for row in rows)
    assert explanation_text(loaded, rows).startswith("full: 8 of 8 tokens of 2 items are kept\n")


def test_unknown_names_are_refused_as_by_recommend(world: World) -> None:
    with pytest.raises(UserError, match="user 'nobody' is not known"):
        ask(world, ItemTokens, user="nobody")
    with pytest.raises(UserError, match="give either a user or a history"):
        ask(world, ItemTokens)


def test_intrr_shows_how_each_item_spreads_over_the_codes_of_every_level(world: World) -> None:
    write_generator(world, strategy="intrr")
    loaded, rows = ask(world, ItemWeights, history=["item-4", "item-7"])
    for row in rows:
        assert [len(level) for level in row.weights] == [*WIDTHS[:-1], 128]
        assert [sum(level) for level in row.weights] == pytest.approx([1] * len(WIDTHS), abs=1e-5)
    lines = explanation_text(loaded, rows).splitlines()
    assert lines[0].startswith("intrr: of each level")
    code, weights = rows[0].codes[0], rows[0].weights[0]
    best = int(np.argmax(weights))
    more = f" ({best} {weights[best]:.2f})" if best != code else ""
    assert lines[1].startswith(f"  item-4  {code} {weights[code]:.2f}{more}")
