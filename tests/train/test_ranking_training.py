"""Exposures from the splits to measured predictions: a network learns what a regression on means cannot know."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_world import TinyWorld, interrupt, make_params
from typed import present

from pipeline.actions import Actions
from pipeline.artifacts import Splits, read_json
from pipeline.backbones.causal import CausalBackbone
from pipeline.config import Params
from pipeline.count.stage import run as count
from pipeline.errors import UserError
from pipeline.evaluate.recommend import recommend
from pipeline.evaluate.shares import view_shares
from pipeline.evaluate.stage import run as evaluate
from pipeline.exposures import Exposures
from pipeline.generator import load_generator
from pipeline.results.compare import compare
from pipeline.results.comparison_text import comparison_markdown, comparison_text
from pipeline.results.predictions import MODEL, Predictions
from pipeline.results.ranks import Ranks, check_reports, read_evaluation
from pipeline.serving.batch import recommend_all
from pipeline.serving.huggingface import export_model

TRAIN = {
    "task": "ranking",
    "select": "auc",
    "windows": "sequences",
    "targets": "all",
    "max_windows": 1500,
    "batch_tokens": 300,
    "learning_rate": 0.02,
    "validate_every": 40,
}
INGEST = {"actions": {"click": [1], "watch_seconds": [3, 10]}}


def ranking_params(backbone: str = "gr", strategy: str = "full", item_rows: bool = True, **train: Any) -> Params:
    return make_params(
        strategy=strategy,
        train={**TRAIN, **train},
        backbone={"name": backbone, "separators": False, "actions": True, "item_rows": item_rows},
        ingest=INGEST,
    )


@pytest.fixture
def exposed(world: TinyWorld) -> TinyWorld:
    """A user clicks after an exposure without a click, and not after one, in 9 of 10; items and users are alike."""
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 30, 60)
    counts[:3] = (0, 1, 2)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    items_X = rng.integers(0, 40, offsets[-1]).astype(np.int32)
    clicks_X = np.zeros(len(items_X), np.uint8)
    for first, end in pairwise(offsets.tolist()):
        clicks_X[first:end] = (np.arange(end - first) + (rng.random(end - first) < 0.1).cumsum() + rng.integers(2)) % 2
    actions = Actions(("click", "watch_seconds"), ((1.0,), (3.0, 10.0)))
    exposures = Exposures(
        items_X=items_X,
        actions_XA=np.stack([clicks_X, clicks_X * rng.integers(1, 3, len(clicks_X))], 1).astype(np.uint8),
        timestamps_X=np.arange(len(items_X)),
        offsets=offsets,
        train_end=offsets[:-1] + counts * 7 // 10,
        valid_end=offsets[:-1] + counts * 8 // 10,
        actions=actions,
    )
    folder = world.folder / "splits"
    folder.unlink()  # a link to the inputs of all tests
    summary = {**world.splits.summary, "actions": actions.as_json()}
    exposures.write(folder)
    splits = replace(world.splits, actions_NA=np.zeros((len(world.splits.items_N), 2), np.uint8), summary=summary)
    splits.write(folder)
    return TinyWorld(world.folder, Splits.read(folder), world.sids)


def evaluated(world: TinyWorld, params: Params, name: str = "run") -> dict[str, float]:
    """Evaluate a run."""
    out = world.folder / name
    count(params, splits=world.folder / "splits", output=world.folder / "counting")
    return evaluate(
        params,
        splits=world.folder / "splits",
        generator=out / "generator",
        counting=world.folder / "counting",
        reports=out / "reports",
    )


@pytest.mark.parametrize(
    ("backbone", "strategy"),
    [
        pytest.param("gr", "skipgr", marks=pytest.mark.long),
        ("sasrec", "full"),
        pytest.param("decoder", "skipgr", marks=pytest.mark.long),
        pytest.param("hstu", "full", marks=pytest.mark.long),
    ],
)
def test_a_network_knows_what_means_do_not_and_a_stopped_run_ends_with_the_same_bytes(
    exposed: TinyWorld, backbone: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = ranking_params(backbone, strategy)
    exposed.train(params, "whole")
    history = pd.read_csv(exposed.folder / "whole/reports/history.csv")
    assert list(history) == ["step", "windows", "train_loss", "valid_loss", "auc"]
    figures = evaluated(exposed, params, "whole")
    assert figures["auc_click_1"] > 0.7
    assert figures["means_auc_click_1"] < 0.65
    interrupt(exposed, params, 23, monkeypatch)
    exposed.train(params)
    assert exposed.written() == exposed.written("whole")
    if strategy == "skipgr":  # a token is a column of an exposure's actions
        skipped = pd.read_csv(exposed.folder / "whole/reports/skipped/by_level.csv")
        assert list(skipped["level"]) == ["level 1", "level 2"]
        assert (skipped["skipped"] > 0.02).all()


@pytest.mark.gpu
@pytest.mark.parametrize(("backbone", "strategy"), [("gr", "full"), ("decoder", "skipgr"), ("hstu", "full")])
def test_recorded_steps_on_a_gpu_learn_what_the_cpu_learns(exposed: TinyWorld, backbone: str, strategy: str) -> None:
    """The losses of a slow run are those of the CPU in float32, and near them in bfloat16, which learns the actions."""
    found = {}
    for device, precision in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        train: dict[str, Any] = {"device": device, "precision": precision, "learning_rate": 1e-3, "compile": True}
        params = ranking_params(backbone, strategy, **train)
        exposed.train(replace(params, backbone=replace(params.backbone, dropout=0.0)), device + precision)
        history = pd.read_csv(exposed.folder / f"{device}{precision}/reports/history.csv")
        found[device, precision] = history[["train_loss", "valid_loss"]].to_numpy()
    np.testing.assert_allclose(found["cuda", "float32"], found["cpu", "float32"], rtol=0.02)
    np.testing.assert_allclose(found["cuda", "bfloat16"], found["cpu", "float32"], rtol=0.03)
    params = ranking_params(backbone, strategy, device="cuda", precision="bfloat16", compile=True)
    exposed.train(params, "fast")
    assert evaluated(exposed, params, "fast")["auc_click_1"] > 0.7


@pytest.mark.parametrize(
    "windows",
    ["all", *(pytest.param(rule, marks=pytest.mark.long) for rule in ("random_start", "prefixes"))],
)
def test_every_rule_of_windows_trains_with_one_target_or_padded(exposed: TinyWorld, windows: str) -> None:
    batching = "padded" if windows == "all" else "packed"
    exposed.train(ranking_params("decoder", windows=windows, targets="last", batching=batching, max_windows=300))
    assert "auc" in pd.read_csv(exposed.folder / "run/reports/history.csv")


def test_a_network_over_semantic_ids_has_a_row_of_each_item_that_training_saw(exposed: TinyWorld) -> None:
    path = exposed.folder / "splits"
    exposures = present(Exposures.read(path))
    trained_X = np.arange(len(exposures.items_X)) < exposures.train_end.repeat(np.diff(exposures.offsets))
    unseen = 17  # which training exposures show no more
    new_X = np.where(trained_X & (exposures.items_X == unseen), 18, exposures.items_X).astype(np.int32)
    assert unseen in new_X
    (path / "manifest.json").unlink()  # the files below are edited on purpose
    replace(exposures, items_X=new_X).write(path)
    exposed.train(ranking_params("hstu", max_windows=300))
    model = load_generator(exposed.folder / "run/generator").model
    assert isinstance(model, CausalBackbone)
    assert set(np.flatnonzero(present(model.catalogue.trained_I).numpy())) == set(new_X[trained_X])
    assert present(present(model.action_tokens).items).shape == (40, model.config.d_model)
    exposed.train(ranking_params("hstu", max_windows=300, item_rows=False), "without")
    without = load_generator(exposed.folder / "without/generator").model
    assert "action_tokens.items" not in without.state_dict()
    assert without.catalogue.trained_I is None


def test_reports_hold_predictions_and_no_recall(exposed: TinyWorld, capsys: pytest.CaptureFixture[str]) -> None:
    params = ranking_params(max_windows=300)
    exposed.train(params)
    told = evaluated(exposed, params)
    printed = capsys.readouterr().out
    assert "no item is ranked, so that there is no recall" in printed
    reports = exposed.folder / "run/reports"
    metrics = read_json(reports / "metrics.json")
    assert [name for name in told if "recall" in name or "ndcg" in name or "mrr" in name] == []
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyz_0123456789.") for name in told if name != "flops_per_window"
    )
    assert told["auc_low"] <= metrics["auc"] <= told["auc_high"]
    # The file holds what the figures were made from, and belongs to the model.
    predictions = read_evaluation(reports)
    assert isinstance(predictions, Predictions)
    assert predictions.auc == metrics["auc"]
    exposures = Exposures.read(exposed.folder / "splits")
    assert exposures is not None
    assert len(predictions.exposures) == len(exposures.part("test")) == told["exposures"]
    first = predictions.exposures["earlier"] == 0
    assert first.sum() == told["first_exposures"] > 0
    share = exposures.actions_XA[exposures.part("train"), 0].mean()
    assert predictions.exposures.loc[first, "chance_click_1"].unique() == pytest.approx([share])
    check_reports(reports, exposed.folder / "run/generator")
    for name, file in (("auc", "by_history.csv"), ("means_auc", "by_popularity.csv"), ("auc", "frontier.csv")):
        assert name in pd.read_csv(reports / file)
    with pytest.raises(UserError, match="predicted actions of exposures, and no ranks of items"):
        Ranks.read(reports / "ranks.parquet")


def test_a_model_of_actions_answers_nobody_who_asks_for_items(exposed: TinyWorld) -> None:
    params = ranking_params(max_windows=300)
    exposed.train(params)
    evaluated(exposed, params)
    splits, log = exposed.folder / "splits", exposed.folder / "interactions"
    generator, reports = exposed.folder / "run/generator", exposed.folder / "run/reports"
    unable = "predicts what users do with items that they are shown, and ranks no items"
    with pytest.raises(UserError, match=unable):
        recommend(history=["B001"], splits=splits, interactions=log, generator=generator, reports=reports)
    with pytest.raises(UserError, match=unable):
        view_shares(history=["B001"], splits=splits, interactions=log, generator=generator, reports=reports)
    with pytest.raises(UserError, match=unable):
        recommend_all(
            exposed.folder / "all.parquet", splits=splits, interactions=log, generator=generator, reports=reports
        )
    facts = {"users": 60, "items": 40, "interactions": 500}
    shutil.copytree(exposed.folder / "interactions", exposed.folder / "log")
    (exposed.folder / "log/ingest.json").write_text(json.dumps(facts))
    export_model(
        exposed.folder / "card",
        params.plain(),
        generator=generator,
        reports=reports,
        interactions=exposed.folder / "log",
        splits=splits,
    )
    card = (exposed.folder / "card/README.md").read_text()
    auc = read_json(reports / "metrics.json")["auc"]
    assert f"| mean over labels | auc | {auc:.4f} |" in card
    assert "| click>=1 | gauc |" in card
    assert "it ranks no items, and has no recall" in card
    assert "recommend(" not in card
    assert "held-out item" not in card


def test_runs_are_compared_by_their_aucs_and_never_with_ranks(exposed: TinyWorld) -> None:
    names = []
    for strategy in ("full", "skipgr"):
        params = ranking_params(strategy=strategy, max_windows=200)
        exposed.train(params, strategy)
        evaluated(exposed, params, strategy)
        names.append(str(exposed.folder / strategy / "reports"))
    report = compare(names, samples=100)
    (table,) = report.tables
    found = {difference.metric: difference for difference in table.comparisons[1].differences}
    assert {"auc", "gauc", "wgauc", "auc_click_1", "gauc_watch_seconds_10"} <= set(found)
    assert not any("recall" in name for name in found)
    runs = table.comparisons[1].arm.runs
    aucs = [run.ranks.figures(MODEL)["auc_click_1"] for run in runs if isinstance(run.ranks, Predictions)]
    assert found["auc_click_1"].value == pytest.approx(np.mean(aucs))
    for text in (comparison_text(report), comparison_markdown(report)):
        assert "test exposures of" in text
        assert "AUC" in text
        assert "recall@10 " not in text.replace("recall@10 (of predicted", "")


def test_exposures_that_are_not_there_or_tell_nothing_are_refused(exposed: TinyWorld) -> None:
    exposures = Exposures.read(exposed.folder / "splits")
    assert exposures is not None
    folder = exposed.folder / "splits"
    (folder / "manifest.json").unlink()  # the files below are edited on purpose
    replace(exposures, actions_XA=np.zeros_like(exposures.actions_XA)).write(folder)
    with pytest.raises(UserError, match=r"every label of ingest\.actions has one answer alone"):
        exposed.train(ranking_params())
    exposed.train(ranking_params(select="loss", max_windows=100))
    assert list(pd.read_csv(exposed.folder / "run/reports/history.csv"))[-1] == "valid_loss"
    replace(exposures, valid_end=exposures.train_end).write(folder)
    with pytest.raises(UserError, match="no validation exposure has an earlier exposure of its user"):
        exposed.train(ranking_params())
    replace(exposed.splits, actions_NA=None, summary={"max_history": 6, "items": 40}).write(folder)
    with pytest.raises(UserError, match=r"train\.task is ranking, and .* has no exposures"):
        exposed.train(ranking_params())
