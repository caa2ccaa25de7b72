"""A saved model comes back exactly, and a damaged one is named."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from networks import MakeBatch, MakeCausal, MakeModel

from pipeline.backbones import build_backbone
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.t5 import T5
from pipeline.catalogue import Catalogue
from pipeline.decoding.beam_search import beam_search
from pipeline.decoding.ranking import generate_items
from pipeline.errors import UserError
from pipeline.generator import load_generator, save_generator

EXTRA: dict[str, Any] = {
    "strategy": "full",
    "pad_to": 0,
    "max_history": 20,
    "seed": 7,
    "dataset": "demo",
    "fingerprints": {"sids": "abc"},
}


@pytest.fixture
def saved(make_model: MakeModel, tmp_path: Path) -> tuple[T5, Path]:
    """(model, folder it was saved to)."""
    model = make_model(separators=False, ff_hidden_layers=2)
    items = model.catalogue.items
    frame = pd.DataFrame(
        {
            "item_id": range(items),
            "raw_id": [f"B{item:03}" for item in range(items)],
            "title": [None, *(f"title {item}" for item in range(1, items))],
        }
    )
    save_generator(tmp_path / "generator", model, model.catalogue, frame, EXTRA)
    return model, tmp_path / "generator"


def test_the_loaded_model_ranks_and_scores_exactly_alike(saved: tuple[T5, Path], make_batch: MakeBatch) -> None:
    model, folder = saved
    generator = load_generator(folder)
    histories, _ = make_batch(model)
    ours, theirs = (beam_search(m, histories, 10) for m in (model, generator.model))
    assert torch.equal(ours.items_WK, theirs.items_WK)
    assert torch.equal(ours.scores_WK, theirs.scores_WK)
    assert not generator.model.training
    assert generator.model.catalogue is generator.catalogue


@pytest.mark.parametrize("name", ["decoder", "hstu", "sasrec", "gr"])
def test_a_causal_backbone_comes_back_too(
    make_causal: MakeCausal, make_batch: MakeBatch, tmp_path: Path, name: Literal["decoder", "hstu", "sasrec", "gr"]
) -> None:
    model = make_causal(name)
    frame = pd.DataFrame({"item_id": range(60), "raw_id": [f"B{item:03}" for item in range(60)]})
    save_generator(tmp_path, model, model.catalogue, frame, EXTRA)
    loaded = load_generator(tmp_path).model
    assert type(loaded) is type(model)
    histories, _ = make_batch(model)
    assert torch.equal(beam_search(loaded, histories, 10).scores_WK, beam_search(model, histories, 10).scores_WK)


def test_the_folder_says_how_the_model_was_made_and_what_its_items_are_called(saved: tuple[T5, Path]) -> None:
    model, folder = saved
    generator = load_generator(folder)
    assert generator.config == {**generator.config, **EXTRA}
    assert generator.config["backbone"]["ff_hidden_layers"] == 2
    assert generator.config["widths"] == [7, 6, 5, 3]
    assert generator.items["raw_id"].tolist()[:2] == ["B000", "B001"]
    codes = generator.items[["code_1", "code_2", "code_3", "code_4"]].to_numpy()
    assert codes.tolist() == model.catalogue.codes_IL.tolist()


def test_equal_models_give_equal_bytes(saved: tuple[T5, Path], tmp_path: Path) -> None:
    _, folder = saved
    generator = load_generator(folder)
    names = ["item_id", "raw_id", "title"]
    save_generator(tmp_path / "again", generator.model, generator.catalogue, generator.items[names], EXTRA)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_a_catalogue_whose_items_share_sids_comes_back_as_one(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(separators=False)
    shared = Catalogue(model.catalogue.codes_IL[torch.arange(60) // 2], model.catalogue.widths, digit=False)
    frame = pd.DataFrame({"item_id": range(60), "raw_id": [f"B{item:03}" for item in range(60)]})
    save_generator(tmp_path, build_backbone(model.config, shared), shared, frame, EXTRA)
    loaded = load_generator(tmp_path).catalogue
    assert (loaded.digit, loaded.shares) == (False, True)
    assert torch.equal(loaded.leaf_of_item_I, shared.leaf_of_item_I)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "items.parquet"])
def test_a_missing_file_is_named(saved: tuple[T5, Path], name: str) -> None:
    _, folder = saved
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        load_generator(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "items.parquet"])
def test_a_file_that_was_cut_short_is_named(saved: tuple[T5, Path], name: str) -> None:
    _, folder = saved
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=name):
        load_generator(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"widths": [7, 6, 5, 4]},
        {"widths": [7, 6, 5]},
        {"widths": [7, 6, 5, 2]},
        {"backbone": {"d_model": 32}},
        {"backbone": {"from_the_future": 1}},
        {"backbone": None},
        {"widths": None},
    ],
)
def test_files_that_do_not_belong_together_are_refused(saved: tuple[T5, Path], change: dict[str, Any]) -> None:
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="dvc checkout"):
        load_generator(folder)


@pytest.mark.parametrize("name", ["rastp+skipgr", "intrr", "hstu"])
def test_a_model_that_was_trained_before_the_code_moved_answers_as_then(name: str, root: Path) -> None:
    """The models were trained, and their answers recorded, at commit ab439d4."""
    folder = root / "tests/golden/generators" / name
    loaded, expected = load_generator(folder), json.loads((folder / "expected.json").read_text())
    times = np.arange(6) * 1000 if loaded.model.wants_times else None
    items, offsets = np.array([3, 4, 5, 17, 18, 30]), np.array([0, 3, 5, 6])
    outputs = generate_items(loaded.model, items, offsets, beam=5, times=times)
    assert outputs.items_WK.tolist() == expected["items"]
    np.testing.assert_allclose(outputs.scores_WK, expected["scores"], atol=1e-4)
    assert (loaded.eval_skips is None) == (name != "rastp+skipgr")


def test_skips_that_no_strategy_reads_are_refused(saved: tuple[T5, Path]) -> None:
    _, folder = saved
    (folder / "skips.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="strategy full has no `eval_rule` that reads it"):
        load_generator(folder)


@pytest.mark.parametrize("key", BackboneConfig.SAVED_WITHOUT)
def test_a_model_that_is_older_than_a_key_loads_as_it_was_trained(saved: tuple[T5, Path], key: str) -> None:
    """The value comes with the key's dataclass, never from params.yaml or its defaults."""
    model, folder = saved
    (folder / "manifest.json").unlink()  # which models of earlier versions lack
    config = json.loads((folder / "config.json").read_text())
    assert config["backbone"].pop(key) == BackboneConfig.SAVED_WITHOUT[key]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_generator(folder).model.config == model.config


def test_skips_of_a_model_that_is_older_than_at_eval_are_for_training_alone(root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(root / "tests/golden/generators/rastp+skipgr", tmp_path / "generator")
    (folder / "skips.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    assert config["skipgr"].pop("at_eval")
    (folder / "config.json").write_text(json.dumps(config))
    assert load_generator(folder).eval_skips is None


def test_a_saved_model_that_lacks_any_other_key_is_damaged(saved: tuple[T5, Path]) -> None:
    _, folder = saved
    (folder / "manifest.json").unlink()
    whole = json.loads((folder / "config.json").read_text())
    for key in set(whole["backbone"]) - set(BackboneConfig.SAVED_WITHOUT):
        backbone = {name: value for name, value in whole["backbone"].items() if name != key}
        (folder / "config.json").write_text(json.dumps({**whole, "backbone": backbone}))
        with pytest.raises(UserError, match=f"missing key 'backbone.{key}'"):
            load_generator(folder)


def test_a_folder_without_a_manifest_loads_and_a_changed_file_does_not(
    saved: tuple[T5, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = saved
    load_generator(folder)
    assert capsys.readouterr() == ("", "")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config + "\n")
    with pytest.raises(UserError, match=r"config\.json is not the file that .*manifest\.json lists"):
        load_generator(folder)
    (folder / "manifest.json").unlink()
    load_generator(folder)
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"note: {folder} has no manifest.json")
    assert error.count("\n") == 1
