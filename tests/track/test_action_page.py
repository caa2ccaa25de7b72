"""The page, the printed lines and the run's description of a model that predicts actions, which has no recall."""

from dataclasses import replace
from pathlib import Path

import pytest
from settings import some_params

from pipeline.results.identity import Result, read_result
from pipeline.results.parameters import flatten
from pipeline.results.run_names import RunName
from pipeline.results.sections import final_metrics
from pipeline.track.action_scoreboard import action_rows, action_scoreboard_text
from pipeline.track.description import CURVE, describe_run, pictures
from pipeline.track.page import render_page

COSTS = ("train_seconds", "windows_trained", "windows_per_second", "parameters", "best_step", "users")


@pytest.fixture
def result(project: Path) -> Result:  # noqa: ARG001 - asked for what it does
    """A finished result whose metrics are those of actions; no edge of a like divides the test exposures."""
    made = read_result(Path("reports"), Path("data/interactions"), Path("data/sids"), Path("dvc.lock"))
    figures = {"auc": 0.6123, "gauc": 0.6045, "wgauc": 0.6077, "log_loss": 0.4321, "calibration": 1.0123}
    metrics = {name: value for name, value in made.metrics.items() if name in COSTS} | {"exposures": 11219}
    for number, label in enumerate(("", "_click_1", "_watch<b>_3")):
        metrics |= {f"{name}{label}": value + number / 100 for name, value in figures.items()}
        metrics |= {f"means_{name}{label}": value - number / 100 for name, value in figures.items()}
        metrics |= {f"auc{label}_low": 0.601, f"auc{label}_high": 0.623}
    metrics |= {"log_loss_like_1": 0.1, "means_log_loss_like_1": 0.11}
    rows = [{"bin": " 1-5", "auc": ".6", "means_auc": ".5"}, {"bin": "6-10", "auc": "nan", "means_auc": "nan"}]
    history = [
        {"step": row["step"], "windows": row["windows"], "train_loss": 1.0, "valid_loss": 1.1, "auc": 0.6}
        for row in made.history
    ]
    return replace(made, metrics=metrics, history=history, by_history=rows, by_popularity=rows)


def test_the_page_shows_every_figure_and_says_that_there_is_no_recall(result: Result) -> None:
    page = render_page(result, flatten(some_params()))
    for row in action_rows(result.metrics, "full"):
        for cell in row.cells:
            assert cell is None or f"{cell.value:.4f}" in page
    assert "ranks no items, so that there is no recall" in page
    assert "0.6010 to 0.6230" in page
    assert "11,219 test exposures" in page
    assert "<b>_3" not in page
    assert page.count("<svg") == 4
    without = page.split("<h2>Compare")[0]
    assert "recall@10" not in without
    assert "test users" not in without
    unselected = [{name: value for name, value in row.items() if name != "auc"} for row in result.history]
    assert render_page(replace(result, history=unselected), flatten(some_params())).count("<svg") == 3


def test_lines_and_description_have_the_same_figures(result: Result, tmp_path: Path) -> None:
    text = action_scoreboard_text(result.metrics, "skipgr")
    params = flatten(some_params())
    drawn = pictures(result, [], tmp_path)
    assert [path.name for path in drawn] == [CURVE]
    described = describe_run(result, params, RunName.of(params, {}), "run", [CURVE])
    for told in (text, described):
        assert "0.6123" in told
        assert "there is no recall" in told
        assert "recall@" not in told
    assert "mean over labels, skipgr" in text
    assert "auc 0.6010 to 0.6230" in text.lower()


def test_a_label_stands_where_it_has_an_auc_and_mlflow_sorts_the_means_as_a_baseline(result: Result) -> None:
    assert not [row.system for row in action_rows(result.metrics, "full") if row.system.startswith("like")]
    told = final_metrics({"auc": 0.6, "gauc_click_1": 0.6, "means_auc_click_1": 0.5}, {"train_seconds": 3.0})
    assert list(told) == ["test/auc", "test/gauc_click_1", "baseline/means_auc_click_1", "cost/train_seconds"]
