"""The model in MLflow as its users meet it: loaded and served outside the project, promoted, published."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluated_world import World, stored_world, write_generator
from patience import answers, wait_until

from pipeline.artifacts import read_json, write_json
from pipeline.errors import UserError
from pipeline.evaluate.recommend import recommend
from pipeline.evaluate.stage import run as evaluate
from pipeline.generator import load_generator
from pipeline.manifest import sealed
from pipeline.results.mlflow_client import MlflowClient
from pipeline.results.mlflow_model import MODEL_NAME, REQUIRED, log_model
from pipeline.results.ranks import Ranks
from pipeline.results.registry import champion
from pipeline.serving.promote import promote
from pipeline.serving.publish import current, rollback

EXPERIMENT, NAME = "sidpipe", "shop"
HISTORIES = [["item-1", "item-2"], ["item-3", "nobody"], [], [f"item-{item}" for item in range(9)]]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings_given_back: None) -> World:  # noqa: ARG001
    """An evaluated project with a store; it is the current folder."""
    return stored_world(tmp_path / "project", monkeypatch)


def recorded(world: World) -> str:
    """The id of the logged model of the workspace, beside a new run that has a metric."""
    client = MlflowClient()
    known = client.get_experiment_by_name(EXPERIMENT)
    artifacts = (world.root / "mlartifacts").as_uri()
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT, artifacts)
    run = client.create_run(experiment)
    client.log_metric(run.info.run_id, "recall_at_10", 0.25)
    folders: Any = {"generator": world.paths["generator"], "splits": world.paths["splits"]}
    ranks = world.paths["reports"] / "ranks.parquet"
    folders |= {"origin": Ranks.read(ranks).origin}
    model = log_model(run.info.run_id, experiment, ranks=ranks, tags={"strategy": "full"}, **folders)
    assert log_model(run.info.run_id, experiment, ranks=ranks, tags={}, **folders) == model, "it is logged once"
    return model


def promoted(world: World, **arguments: Any) -> Any:
    return promote("workspace", NAME, EXPERIMENT, world.root / "served", samples=200, **arguments)


def write_ranks(world: World, ranks: Ranks) -> None:
    """The workspace's evaluation has these ranks."""
    path = world.paths["reports"] / "ranks.parquet"
    ranks.write(path)
    details = read_json(path.with_name("details.json"))
    del details["checksum"]
    write_json(path.with_name("details.json"), sealed(details, path.parent, details["files"]))
    (world.paths["reports"] / "metrics.json").unlink(missing_ok=True)


def another_model(world: World, *, hits: bool) -> None:
    """The workspace has a model with other weights, whose test items are all first, or all missed."""
    write_generator(world, seed=7)
    (world.paths["reports"] / "metrics.json").unlink(missing_ok=True)
    evaluate(world.params, **world.inputs)
    ranks = Ranks.read(world.paths["reports"] / "ranks.parquet")
    write_ranks(world, Ranks(ranks.users.assign(rank=int(hits)), ranks.origin))
    recorded(world)


def outside(code: str, *arguments: object, cwd: Path) -> str:
    """What Python prints in another folder, without this project on its path and with every web address refused."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DVC_ROOT")}
    environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


LOAD = """
import json, sys
import ast
from importlib.metadata import packages_distributions
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
answers = model.predict(pd.DataFrame({"history": json.loads(sys.argv[2])}), params={"k": 4})
import pipeline
named = packages_distributions()
loaded = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "pipeline"]
statements = [node for module in loaded if module.__file__ for node in ast.parse(open(module.__file__).read()).body]
roots = {alias.name.split(".")[0] for node in statements if isinstance(node, ast.Import) for alias in node.names}
roots |= {(node.module or "").split(".")[0] for node in statements if isinstance(node, ast.ImportFrom)}
print(json.dumps({
    "answers": answers.to_dict("records"), "package": pipeline.__file__,
    "imported": sorted({package for root in roots - {"pipeline"} for package in named.get(root, [])}),
}))
"""


@pytest.mark.long
def test_the_model_loads_outside_the_project_and_says_what_recommend_says(world: World, tmp_path: Path) -> None:
    model = recorded(world)
    found = json.loads(outside(LOAD, f"models:/{model}", json.dumps(HISTORIES), cwd=tmp_path))
    assert "mlartifacts" in found["package"], "the package is the copy that lies beside the model"
    check_answers(world, found["answers"])


def check_answers(world: World, answers: list[dict[str, Any]]) -> None:
    assert [answer["source"] for answer in answers] == ["model", "model", "popular", "model"]
    assert [answer["unknown"] for answer in answers] == [0, 1, 0, 0]
    for history, answer in zip(HISTORIES, answers, strict=True):
        if known := [item for item in history if item != "nobody"]:
            rows = recommend(history=known, k=4, generator=world.paths["generator"], reports=world.root / "none")
            assert answer["items"] == [row.item for row in rows]
            assert answer["scores"] == pytest.approx([row.score for row in rows], abs=1e-4)


@pytest.mark.long
def test_the_files_are_no_pickles_name_no_path_of_this_machine_and_pin_what_they_import(world: World) -> None:
    model = MlflowClient().get_logged_model(recorded(world))
    folder = Path(model.artifact_location.removeprefix("file://"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".bin", ".pyc")]
    assert str(world.root) not in (folder / "MLmodel").read_text()
    pins = (folder / "requirements.txt").read_text().split()
    assert [pin.split("==")[0] for pin in pins] == list(REQUIRED)
    assert (folder / "input_example.json").exists()
    assert (model.name, model.status, model.tags["strategy"]) == (MODEL_NAME, "READY", "full")
    assert [(metric.key, metric.value) for metric in model.metrics or []] == [("recall_at_10", 0.25)]


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[str]:
    """The address of `mlflow models serve` of the champion, started in another folder."""
    recorded(world)
    promoted(world)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", f"models:/{NAME}@champion"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DVC_ROOT")}
    process = subprocess.Popen(
        [*command, "--env-manager", "local", "--port", str(port)],
        cwd=tmp_path,
        env=environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{address}/ping"), "the server does not answer", look=0.5, alive=process)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


@pytest.mark.long
def test_a_post_to_the_server_of_the_champion_is_answered_as_by_recommend(world: World, server: str) -> None:
    rows = [{"history": history, "user": f"u{row}"} for row, history in enumerate(HISTORIES)]
    body = json.dumps({"dataframe_records": rows, "params": {"k": 4}}).encode()
    request = urllib.request.Request(f"{server}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        answers = json.load(answer)["predictions"]
    assert [answer["user"] for answer in answers] == ["u0", "u1", "u2", "u3"]
    check_answers(world, answers)


def agreed(world: World) -> bool:
    """Whether the alias names the version that the folder serves."""
    now = current(world.root / "served")
    return now is not None and now.registered == champion(NAME)


def test_a_better_model_is_promoted_a_worse_one_is_not_and_the_way_back_is_open(world: World) -> None:
    recorded(world)
    first = promoted(world)
    assert (first.new, first.comparison, agreed(world)) == (True, "", True)
    assert not promoted(world).new
    another_model(world, hits=False)
    with pytest.raises(UserError, match="is not promoted: its recall_at_10"):
        promoted(world)
    assert champion(NAME) == first.published.registered
    another_model(world, hits=True)
    second = promoted(world)
    assert "recall_at_10" in second.comparison
    assert agreed(world)
    assert champion(NAME) != first.published.registered
    served = load_generator(world.root / "served/current/artifacts/generator")
    here = load_generator(world.paths["generator"])
    assert served.config == here.config
    rollback(world.root / "served")
    assert agreed(world)
    assert champion(NAME) == first.published.registered


def test_a_model_with_another_rule_for_seen_items_is_another_one_to_promote(world: World) -> None:
    def evaluated(*, filter_seen: bool) -> None:
        evaluate(world.params, **world.inputs)
        ranks = Ranks.read(world.paths["reports"] / "ranks.parquet")
        write_ranks(world, Ranks(ranks.users, replace(ranks.origin, filter_seen=filter_seen)))

    evaluated(filter_seen=False)
    recorded(world)
    first = promoted(world)
    evaluated(filter_seen=True)
    with pytest.raises(UserError, match="cannot be compared with the champion"):
        promoted(world)
    with pytest.raises(UserError, match="has no model of this run"):
        promoted(world, force=True)  # that by the other rule was logged, and this one was not
    recorded(world)
    second = promoted(world, force=True)
    assert (second.new, second.published.model) == (True, first.published.model)
    assert champion(NAME) != first.published.registered
    assert agreed(world)
    assert not promoted(world).new


KILLED = """
import os, sys
from pathlib import Path
from pipeline.serving import publish
from pipeline.serving.promote import promote
publish.point = lambda *_: os._exit(9)
promote("workspace", "shop", "sidpipe", Path("served"), samples=200)
"""


@pytest.mark.long
def test_a_promotion_killed_between_alias_and_folder_is_completed_by_the_next_command(world: World) -> None:
    recorded(world)
    promoted(world)
    another_model(world, hits=True)
    assert subprocess.run([sys.executable, "-c", KILLED], cwd=world.root).returncode == 9
    assert not agreed(world), "the kill came between the two"
    assert not promoted(world).new, "the next command finds the promotion done"
    assert agreed(world)


def test_somebody_who_moves_the_alias_by_hand_is_told(world: World) -> None:
    recorded(world)
    promoted(world)
    MlflowClient().delete_registered_model_alias(NAME, "champion")
    another_model(world, hits=True)
    with pytest.raises(UserError, match="the alias champion of shop is at no registered version"):
        promoted(world)


def test_a_model_that_track_did_not_log_is_not_promoted(world: World) -> None:
    MlflowClient().create_experiment(EXPERIMENT)
    with pytest.raises(UserError, match="has no model of this run"):
        promoted(world)


@pytest.mark.long
def test_requirements_cover_all_that_the_package_imports_to_answer(world: World, tmp_path: Path) -> None:
    found = json.loads(outside(LOAD, f"models:/{recorded(world)}", json.dumps([["item-1"]]), cwd=tmp_path))
    assert sorted(set(found["imported"]) - set(REQUIRED)) == []
