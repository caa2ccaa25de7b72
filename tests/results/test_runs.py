"""Runs are found under the names that users have for them, and fall into arms by all but the seed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_world import World, write_generator
from synthetic_runs import ranks_of, write_run

from pipeline.errors import UserError
from pipeline.evaluate.stage import run
from pipeline.results import arms
from pipeline.results.arms import Arm, ProtocolGroup, groups_of, matches
from pipeline.results.runs import Run, read_run

RANK = np.array([1, 0, 3, 11, 0, 2])


def shape(arguments: list[str]) -> list[tuple[str, tuple[int, ...]]]:
    groups, _ = groups_of(arguments)
    return [(match.arm.name, match.arm.seeds) for group in groups for match in group.matches]


def references(groups: list[ProtocolGroup]) -> dict[str, str | None]:
    return {m.arm.name: m.reference.name if m.reference else None for group in groups for m in group.matches}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Results of two strategies and of changed parameters, over seeds."""
    return {
        f"{strategy}{recipe}{seed}": write_run(
            tmp_path / f"{strategy}{recipe}{seed}",
            ranks_of(RANK, strategy=strategy, seed=seed, recipe=strategy + recipe, model=f"{strategy}{recipe}{seed}"),
        )
        for strategy, recipe, seed in [
            ("full", "", 2),
            ("full", "", 1),
            ("rastp", "", 1),
            ("rastp", "", 2),
            ("full", "slow", 1),
        ]
    }


def test_runs_that_differ_in_the_seed_only_are_one_arm(folders: dict[str, str]) -> None:
    names = ["full2", "rastp1", "full1", "rastp2"]
    assert shape([folders[name] for name in names]) == [("full", (1, 2)), ("rastp", (1, 2))]


def test_one_strategy_with_two_recipes_is_two_arms_called_by_their_runs(folders: dict[str, str]) -> None:
    names = [f"full ({folders[name]})" for name in ("full1", "fullslow1")]
    assert shape([folders["full1"], folders["fullslow1"]]) == [(name, (1,)) for name in names]


def test_arms_can_be_put_together_by_hand_and_the_first_named_is_the_reference(folders: dict[str, str]) -> None:
    mine = f"mine={folders['rastp1']},{folders['full2']}"
    assert shape([mine, folders["full1"]]) == [("mine", (1, 2)), ("full", (1,))]
    assert shape([folders["full1"], mine]) == [("full", (1,)), ("mine", (1, 2))]


def test_a_run_is_found_as_folder_file_project_or_workspace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run(world.params, **world.inputs)
    monkeypatch.chdir(world.root)
    same = {
        read_run(name).ranks.origin.model
        for name in ("reports", "reports/ranks.parquet", ".", str(world.root), "workspace")
    }
    assert len(same) == 1


def test_reports_beside_another_model_are_refused(world: World) -> None:
    run(world.params, **world.inputs)
    write_generator(world, seed=4)
    with pytest.raises(UserError, match="another model"):
        read_run(str(world.paths["reports"]))


def test_one_arm_is_nothing_to_compare(folders: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"only one arm: full, seed 1, 2"):
        groups_of([folders["full1"], folders["full2"]])


def test_a_run_is_not_compared_with_itself(folders: dict[str, str]) -> None:
    one, two = folders["full1"], folders["full2"]
    with pytest.raises(UserError, match=f"{two} would be compared with itself: a and b hold the same evaluation"):
        groups_of([f"a={one},{two}", f"b={two}"])


def test_of_two_results_of_the_same_settings_and_seed_the_newest_counts_and_it_is_said(
    folders: dict[str, str], tmp_path: Path
) -> None:
    again = write_run(tmp_path / "again", ranks_of(RANK, seed=1, recipe="full", model="elsewhere"))
    os.utime(Path(folders["full1"]) / "ranks.parquet", (1, 1))
    groups, notes = groups_of([folders["full1"], folders["rastp1"], again])
    assert [run.name for run in groups[0].matches[0].arm.runs] == [again]
    assert notes == [f"left out: {folders['full1']} (settings and seed of {again}, which is newer: {again})"]


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "other"},
        {"decoding": "unconstrained"},
        {"beam": 50},
        {"filter_seen": True},
        {"protocol": "leave one out, ties shuffled"},
    ],
)
def test_runs_evaluated_differently_are_in_two_groups(
    folders: dict[str, str], tmp_path: Path, change: dict[str, Any]
) -> None:
    other = write_run(tmp_path / "other", ranks_of(RANK, strategy="rastp", **change))
    groups, _ = groups_of([folders["full1"], other])
    assert len(groups) == 2
    assert set(references(groups).values()) == {None}


def test_other_users_or_other_test_items_are_in_another_group(folders: dict[str, str], tmp_path: Path) -> None:
    fewer = write_run(tmp_path / "fewer", ranks_of(RANK[:4], strategy="rastp"))
    moved = ranks_of(RANK, strategy="rastp")
    moved.users["item_id"] += 1
    groups, _ = groups_of([folders["full1"], fewer, write_run(tmp_path / "moved", moved)])
    assert len(groups) == 3


def test_the_reference_of_a_strategy_is_full_on_its_backbone_and_the_nearest_of_several() -> None:
    def run(name: str, strategy: str = "full", backbone: str = "t5", key: str = "seed", value: float = 1) -> Run:
        ranks = ranks_of(RANK, strategy=strategy, backbone=backbone, recipe=name, model=name)
        return Run(name, ranks, settings={"strategy": strategy, "quantize.codes": 64, key: value})

    arms = [
        Arm(one.name, (one,))
        for one in (
            run("slow", key="train.learning_rate", value=0.1),
            run("decoder", backbone="decoder"),
            run("HEAD"),
            run("rastp", "rastp", key="rastp.keep", value=0.5),
            run("slow rastp", "rastp", key="train.learning_rate", value=0.1),
            run("small rastp", "rastp", key="quantize.codes", value=32),
            run("hstu intrr", "intrr", backbone="hstu"),
        )
    ]
    found = {match.arm.name: match for match in matches(arms, None)}
    chosen = {name: match.reference.name if match.reference else None for name, match in found.items()}
    assert chosen == {
        "HEAD": None,
        "slow": "HEAD",
        "decoder": None,
        "rastp": "HEAD",
        "slow rastp": "slow",
        "small rastp": "HEAD",
        "hstu intrr": None,
    }
    assert found["small rastp"].differ == ("quantize.codes",)
    assert found["rastp"].differ == ()


def test_runs_of_two_versions_are_one_arm_where_the_later_key_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs that were made before a key of params.yaml was there stand beside later ones with its neutral value."""
    earlier: dict[str, Any] = {"quantize.codes": 64, "train.learning_rate": 1.0}
    later = {**earlier, "backbone.item_rows": False, "train.task": "retrieval", "rastp.base_length": 0}
    runs: dict[str, Run] = {}
    for strategy in ("full", "rastp"):
        for seed, settings in enumerate((earlier, later, {**later, "skipgr.at_eval": True, "dense.ema": 0.9}), 1):
            name = f"{strategy}{seed}"
            ranks = ranks_of(RANK, strategy=strategy, seed=seed, recipe=name, model=name)
            runs[name] = Run(name, ranks, settings={**settings, "strategy": strategy, "seed": seed})
    changed = {**later, "backbone.item_rows": True}
    runs["rows"] = Run("rows", ranks_of(RANK, seed=1, recipe="rows", model="rows"), settings=changed)
    monkeypatch.setattr(arms, "read_run", runs.__getitem__)
    groups, _ = groups_of([*runs])
    (group,) = groups
    assert [(match.arm.strategy, match.arm.seeds) for match in group.matches] == [
        ("full", (1, 2, 3)),
        ("rastp", (1, 2, 3)),
        ("full", (1,)),
    ]
    assert [match.differ for match in group.matches] == [(), (), ("backbone.item_rows",)]


MAKE = """
import sys
import numpy as np, yaml
from pathlib import Path
sys.path[:0] = {paths!r}
from synthetic_runs import ranks_of, write_run
params = yaml.safe_load(Path("params.yaml").read_text())
write_run(Path("reports"), ranks_of(np.arange(9) % 5, strategy=params["strategy"], seed=params["seed"]))
"""
STAGE = """
stages:
  evaluate:
    cmd: {python} make.py
    params: [seed, strategy]
    deps: [make.py]
    outs: [reports/ranks.parquet]
"""


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments, "-q"], check=True, capture_output=True)


def git(*arguments: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments], check=True, capture_output=True
    )


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder: a DVC repository with the commit `main` (full) and the experiment `pruned`, seed 1 both."""
    tests = Path(__file__).resolve().parents[1]
    monkeypatch.chdir(tmp_path)
    Path("make.py").write_text(MAKE.format(paths=[str(tests / "support"), str(tests.parent)]))
    Path("dvc.yaml").write_text(STAGE.format(python=sys.executable))
    Path("params.yaml").write_text("seed: 1\nstrategy: full\n")
    git("init", "-b", "main")
    dvc("init")
    dvc("repro")
    git("add", ".")
    git("commit", "-m", "first")
    dvc("exp", "run", "-n", "pruned", "-S", "strategy=rastp")


@pytest.mark.slow
@pytest.mark.usefixtures("repository")
def test_experiments_commits_and_the_workspace_are_read_from_dvc() -> None:
    assert shape(["main", "pruned"]) == shape(["main", "workspace"]) == [("full", (1,)), ("rastp", (1,))]
    groups, notes = groups_of([])  # the commit itself and its experiment, which the workspace still holds
    assert references(groups) == {"full": None, "rastp": "full"}
    assert [run.name for match in groups[0].matches for run in match.arm.runs] == ["HEAD", "pruned"]
    assert groups[0].matches[1].arm.runs[0].settings == {"seed": 1, "strategy": "rastp"}
    assert notes == []
    with pytest.raises(UserError, match="no run is called 'prund'"):
        groups_of(["main", "prund"])


def test_outside_of_a_repository_the_experiments_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot be listed"):
        groups_of([])
