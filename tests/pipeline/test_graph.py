"""dvc.yaml against the code: DVC follows no imports and reads no dataclasses, so what a stage names must be checked."""

import ast
import importlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from project_folder import STAGES
from settings import some_params

from pipeline.strategies.registry import settings_types

# These files print messages, answer signals or let processes wait, and change no output: a new wording must not train
# anything again.
SPEECH = {
    "pipeline/__init__.py",
    "pipeline/errors.py",
    "pipeline/locks.py",
    "pipeline/printing.py",
    "pipeline/progress.py",
    "pipeline/stopping.py",
}


@pytest.fixture(scope="module")
def graph(root: Path) -> dict[str, Any]:
    stages: dict[str, Any] = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    return stages


def local_imports(root: Path, file: str, lazy: bool = True) -> set[str]:
    """Files of this project that `file` imports, without those for the type checker. lazy: also inside functions."""
    found = strategy_folders(root) if file == "pipeline/strategies/registry.py" else set()
    for node in walk_without_type_checking(ast.parse((root / file).read_text()), lazy):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                stem = Path(*parts[:depth])
                found |= {
                    str(path)
                    for path in (stem.with_suffix(".py"), stem / "__init__.py")
                    if parts[0] == "pipeline" and (root / path).is_file()
                }
    return found


def strategy_folders(root: Path) -> set[str]:
    """What registry.py imports by looking into its folder, where no import statement names it."""
    return {str(path.relative_to(root)) for path in (root / "pipeline/strategies").glob("*/__init__.py")}


def walk_without_type_checking(node: ast.AST, functions: bool) -> Any:
    yield node
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not for_types and (functions or not isinstance(child, ast.FunctionDef)):
            yield from walk_without_type_checking(child, functions)


def closure(root: Path, file: str, lazy: bool = True) -> set[str]:
    """All files that this one imports, in any number of steps, and itself."""
    seen, waiting = set(), {file}
    while waiting:
        file = waiting.pop()
        seen.add(file)
        waiting |= local_imports(root, file, lazy) - seen
    return seen


def stage_file(stage: str) -> str:
    return f"pipeline/{stage}/stage.py"


def code_of(root: Path, stage: str) -> set[str]:
    """All files that a run of the stage imports; for `check`, those that check params.yaml and what they load."""
    if stage == "check":
        return {stage_file(stage)} | closure(root, "pipeline/config.py", lazy=False)
    return closure(root, stage_file(stage))


def only_speaks(root: Path, file: str) -> bool:
    """Whether the file holds nothing but a docstring."""
    return file in SPEECH or all(isinstance(node, ast.Expr) for node in ast.parse((root / file).read_text()).body)


def covers(dependency: str, file: str) -> bool:
    return Path(file).is_relative_to(dependency)


def flat_keys() -> set[str]:
    """Sections of params.yaml, and section.key."""
    sections = some_params().plain()
    return set(sections) | {
        f"{name}.{key}" for name, values in sections.items() if isinstance(values, dict) for key in values
    }


def declared(root: Path, stage: str) -> set[str]:
    """Sections that the stage's Protocol, such as `IngestParams`, says it reads of params.yaml."""
    (file,) = [
        file
        for file in (root / "pipeline" / stage).glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == f"{stage.capitalize()}Params"
    ]
    protocol = getattr(importlib.import_module(f"pipeline.{stage}.{file.stem}"), f"{stage.capitalize()}Params")
    members = {name for base in protocol.__mro__ for name, value in vars(base).items() if isinstance(value, property)}
    # The sections of all strategies are one member, which params.yaml has no name for.
    return members - {"strategies"} | (set(settings_types()) if "strategies" in members else set())


def test_the_stages_stand_in_their_order(graph: dict[str, Any]) -> None:
    assert list(graph) == STAGES
    assert [stage["cmd"] for stage in graph.values()] == [f"python -m pipeline {stage}" for stage in STAGES]


@pytest.mark.parametrize("stage", STAGES)
def test_every_import_of_a_stage_is_a_dependency_and_every_code_dependency_is_imported(
    stage: str, graph: dict[str, Any], root: Path
) -> None:
    code = [dep for dep in graph[stage]["deps"] if dep.startswith("pipeline/")]
    files = code_of(root, stage)
    assert not [file for file in files if not only_speaks(root, file) and not any(covers(dep, file) for dep in code)]
    assert not [dep for dep in code if not any(covers(dep, file) for file in files)]


def test_only_track_depends_on_the_store_of_mlflow_and_training_on_no_result(graph: dict[str, Any]) -> None:
    """A change of how results are shown must not train again. So dvc.yaml names the files of results/ one by one."""
    used = {stage: [dep for dep in graph[stage]["deps"] if dep.startswith("pipeline/results")] for stage in STAGES}
    assert all(dep.endswith(".py") for deps in used.values() for dep in deps)
    for name in ("mlflow_client", "mlflow_store", "sqlite_store", "tracking_uri"):
        store = f"pipeline/results/{name}.py"
        assert [stage for stage in STAGES if store in used[stage]] == ["track"]
    assert [stage for stage in STAGES if used[stage]] == ["evaluate", "track"]


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another(stage: str, root: Path) -> None:
    others = [f"pipeline/{other}" for other in STAGES if other != stage]
    assert not [file for file in closure(root, stage_file(stage)) if any(covers(other, file) for other in others)]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("check", "track")])
def test_the_parameters_of_a_stage_are_those_that_it_declares(stage: str, graph: dict[str, Any], root: Path) -> None:
    """A whole section, or some of its keys. mypy holds the code to the declaration: the stage sees nothing else."""
    named = set(graph[stage]["params"])
    assert named <= flat_keys()
    assert declared(root, stage) == {name.split(".")[0] for name in named}


def test_check_and_track_know_every_parameter(graph: dict[str, Any]) -> None:
    """check watches the whole file; track, which always runs, records all of it."""
    assert graph["check"]["params"] == [{"params.yaml": None}]
    assert graph["track"]["always_changed"]


def test_every_stage_waits_for_the_check(graph: dict[str, Any]) -> None:
    (checked,) = graph["check"]["outs"]
    assert not [stage for stage in STAGES[1:] if checked not in graph[stage]["deps"]]


def test_what_git_tracks_of_a_stage_is_a_metric_or_a_plot(graph: dict[str, Any]) -> None:
    """A plain output with cache: false would switch off the run cache of its stage."""
    for name, stage in graph.items():
        assert all(isinstance(out, str) for out in stage.get("outs", [])), name
        for entry in [*stage.get("metrics", []), *stage.get("plots", [])]:
            assert next(iter(entry.values()))["cache"] is False, name


def test_what_dvc_caches_is_ignored_by_git_and_the_rest_is_not(graph: dict[str, Any], root: Path) -> None:
    cached = [out for stage in graph.values() for out in stage.get("outs", [])]
    tracked = [
        next(iter(entry)) for stage in graph.values() for entry in [*stage.get("metrics", []), *stage.get("plots", [])]
    ]
    for path, code in [*((path, 0) for path in cached), *((path, 1) for path in [*tracked, "dvc.lock"])]:
        probe = path if Path(path).suffix else f"{path}/file"
        assert subprocess.run(["git", "check-ignore", "-q", probe], cwd=root).returncode == code, path
