"""The stage dense: what it trains, writes and says, and that it reads nothing of the strategy."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from dense_world import dense_files, dense_params, train_dense
from safetensors.numpy import load_file
from tiny_world import TinyWorld, make_params

from pipeline.artifacts import Embeddings, Splits, read_json, write_parquet
from pipeline.decoding.ranking import generate_items
from pipeline.errors import UserError
from pipeline.generator import load_retriever
from pipeline.manifest import unsealed
from pipeline.metric_names import DENSE_TRAINING
from pipeline.training.negatives import counts_in_training
from pipeline.training.windows import Epochs


def replace_embeddings(world: TinyWorld, vectors_IC: np.ndarray) -> None:
    (world.folder / "embeddings").unlink()
    Embeddings(vectors_IC.astype(np.float32), {}).write(world.folder / "embeddings")


def test_the_folder_has_the_form_of_the_generators_and_equal_bytes_each_time(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    report = train_dense(world)
    said = capsys.readouterr().out
    assert "dense: 40 items by their ids and content vectors of width 6\n" in said
    assert f"dense: best at step {report['dense_best_step']} of {report['dense_steps']}, recall_at_10" in said
    assert "train:" not in said
    train_dense(world, "again")
    assert dense_files(world) == dense_files(world, "again")
    assert set(dense_files(world)) == {"config.json", "items.parquet", "manifest.json", "model.safetensors"}
    path = world.folder / "run/reports/dense.json"
    assert unsealed(path, read_json(path), "dense") == report
    assert set(DENSE_TRAINING) <= set(report)
    assert report["dense_valid_recall_at_10"] == max(row["recall_at_10"] for row in report["history"]) > 0.5


def test_the_retriever_is_the_backbone_sasrec_as_train_trains_it(world: TinyWorld, inputs: TinyWorld) -> None:
    """The same settings through the stage train give the same tensors."""
    train_dense(world)
    (world.folder / "sids").symlink_to(inputs.folder / "sids")
    epoch = len(Epochs(world.splits, "sequences", 42))
    params = make_params(
        backbone={"name": "sasrec", "d_model": 16, "heads": 2, "d_head": 8, "d_ff": 64, "dropout": 0.1},
        train={
            **{"windows": "sequences", "targets": "all", "max_windows": 8 * epoch, "batch_tokens": 100},
            **{"learning_rate": 0.01, "warmup_steps": 50, "weight_decay": 0.0, "ema": 0.9, "patience": 4},
        },
    )
    world.train(params, "train")
    ours, theirs = (load_file(world.folder / name / "model.safetensors") for name in ("run/dense", "train/generator"))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_the_stage_depends_on_nothing_of_the_strategy(root: Path) -> None:
    stage = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]["dense"]
    assert stage["params"] == ["seed", "dataset", "dense"]
    data = [path for path in stage["deps"] if not path.startswith("pipeline/")]
    assert data == ["data/checked.txt", "data/embeddings", "data/interactions/items.parquet", "data/splits"]


@pytest.mark.parametrize("vectors", ["text is false", "none", "not there"])
def test_items_without_vectors_are_their_ids_and_the_stage_says_so(
    world: TinyWorld, vectors: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if vectors == "none":
        replace_embeddings(world, np.zeros((40, 0)))
    elif vectors == "not there":
        (world.folder / "embeddings").unlink()
    report = train_dense(world, text=vectors != "text is false")
    why = {
        "text is false": "dense.text is false",
        "none": "embed.encoder is none, which makes no vectors",
        "not there": f"{world.folder / 'embeddings'} is not here",
    }
    assert f"dense: 40 items by their ids alone ({why[vectors]})\n" in capsys.readouterr().out
    assert "catalogue.content_IC" not in load_file(world.folder / "run/dense/model.safetensors")
    assert report["dense_content"] == 0


def test_disabled_leaves_a_folder_that_says_so_and_no_earlier_model(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    train_dense(world)
    assert train_dense(world, enabled=False) == {"enabled": False}
    assert capsys.readouterr().out.endswith("dense: dense.enabled is false, so no retriever is trained\n")
    assert set(dense_files(world)) == {"config.json", "manifest.json"}
    assert load_retriever(world.folder / "run/dense") is None
    train_dense(world, "elsewhere", enabled=False)
    assert dense_files(world) == dense_files(world, "elsewhere")
    train_dense(world)
    assert load_retriever(world.folder / "run/dense") is not None


def test_disabled_loads_no_torch() -> None:
    code = "import sys, pipeline.dense.stage, pipeline.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_history_longer_than_a_step_is_a_step_of_its_own(world: TinyWorld) -> None:
    report = train_dense(world, batch_items=1, max_epochs=1)
    assert report["dense_windows_trained"] == len(Epochs(world.splits, "sequences", 42))


def test_a_loss_that_is_not_finite_names_a_key_that_there_is(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.loop.learning_rate", lambda *_: float("nan"))
    with pytest.raises(UserError, match="not a finite number any more") as error:
        train_dense(world)
    assert error.value.fix == "set dense.learning_rate below 0.01"
    assert not (world.folder / "run").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"dim": 50, "heads": 4}, "dense.heads 4 must divide dense.dim 50"),
        ({"dim": 0}, "dense.dim is 0, expected a whole number from 1 to 4,096"),
        ({"dropout": 1.0}, "dense.dropout is 1"),
        ({"text": "yes please"}, "dense.text"),
    ],
)
def test_a_value_that_cannot_be_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dense_params(**keys)


def write_splits(world: TinyWorld, splits: Splits) -> None:
    (world.folder / "splits").unlink()
    splits.write(world.folder / "splits")


def test_an_item_that_training_never_saw_has_its_text_alone(world: TinyWorld) -> None:
    """A copy of an item's text gives a new item the same score, but for what the known one's row adds."""
    items_N = np.asarray(world.splits.items_N).copy()
    items_N[items_N == 39] = 38
    write_splits(world, replace(world.splits, items_N=items_N))
    vectors_IC = Embeddings.read(world.folder / "embeddings").vectors_Id.copy()
    train_dense(world)
    retriever = load_retriever(world.folder / "run/dense")
    assert retriever is not None
    assert counts_in_training(Splits.read(world.folder / "splits"))[39] == 0
    weights = load_file(world.folder / "run/dense/model.safetensors")
    scaled_C = vectors_IC[39] / np.linalg.norm(vectors_IC[39])
    expected_d = weights["content.weight"] @ scaled_C
    vectors_Id = retriever.model.item_vectors().detach().numpy()  # type: ignore[operator] # of SasRec
    np.testing.assert_allclose(vectors_Id[39], expected_d, rtol=1e-5)
    assert (
        np.abs(vectors_Id[38] - weights["content.weight"] @ (vectors_IC[38] / np.linalg.norm(vectors_IC[38]))).max()
        > 0.01
    )


def test_a_catalogue_of_one_item_and_users_without_a_history(world: TinyWorld) -> None:
    lengths = np.array([1, 3, 5, 2, 4])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    held = lengths >= 3
    splits = Splits(
        items_N=np.zeros(offsets[-1], np.int32),
        timestamps_N=np.arange(offsets[-1]),
        offsets=offsets,
        train_end=np.where(held, offsets[1:] - 2, offsets[1:]),
        valid_target=np.where(held, offsets[1:] - 2, -1),
        test_target=np.where(held, offsets[1:] - 1, -1),
        summary={"max_history": 6, "items": 1},
    )
    write_splits(world, splits)
    replace_embeddings(world, np.ones((1, 6)))
    (world.folder / "interactions").unlink()
    items = pd.DataFrame({"item_id": np.zeros(1, np.int32), "raw_id": ["only"], "title": ["One"]})
    write_parquet(world.folder / "interactions" / "items.parquet", items)
    report = train_dense(world)
    assert report["dense_valid_recall_at_10"] == 1
    retriever = load_retriever(world.folder / "run/dense")
    assert retriever is not None
    outputs = generate_items(retriever.model, np.zeros(2, np.int32), np.array([0, 2]), beam=10)
    assert outputs.items_WK[0].tolist() == [0] + 9 * [-2]
    assert outputs.scores_WK[0, 0] == 0


def test_nothing_to_train_on_is_told(world: TinyWorld) -> None:
    splits = world.splits
    write_splits(world, replace(splits, train_end=np.asarray(splits.offsets)[:-1] + 1))
    with pytest.raises(UserError, match="there is nothing to train on"):
        train_dense(world)


def test_the_config_says_what_was_read(world: TinyWorld) -> None:
    train_dense(world, seed=7)
    config = json.loads((world.folder / "run/dense/config.json").read_text())
    assert config["enabled"] is True
    assert (config["seed"], config["strategy"], config["widths"]) == (7, "full", [40])
    assert set(config["fingerprints"]) == {"embeddings", "splits"}


def test_an_index_is_measured_and_lies_beside_the_weights(world: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    exact = train_dense(world, "exact")
    for kind in ("flat", "ivf"):
        report = train_dense(world, kind, index=kind)
        said = capsys.readouterr().out
        assert f"dense: index {kind}," in said
        assert report["dense_index_recall_at_200"] >= 0.99
        assert f"{report['dense_index_recall_at_10']:.1%} of the exact first 10" in said
        files = dense_files(world, kind)
        assert files["model.safetensors"] == dense_files(world, "exact")["model.safetensors"]
        assert "index.faiss" in json.loads(files["manifest.json"])["files"]
        loaded = load_retriever(world.folder / kind / "dense")
        assert loaded is not None
        assert loaded.index is not None
    assert not [name for name in exact if "index" in name]
    # An index of an earlier model does not stay.
    train_dense(world, "ivf", index="exact")
    assert dense_files(world, "ivf") == dense_files(world, "exact")


def test_an_index_without_faiss_is_refused_before_training(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"dense\.index ivf needs faiss"):
        train_dense(world, "none", index="ivf")
    assert not (world.folder / "none/dense").exists()
