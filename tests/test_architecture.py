"""The house has rooms, and imports go one way: from a later layer to an earlier one, never back.

Imports inside functions and those for the type checker alone count like any other.
"""

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

# From the lowest layer to the highest. Rooms of one layer do not import each other, but for the pairs of BESIDE.
LAYERS = (
    ("printing", "errors", "hashing", "metrics", "progress", "faults", "locks", "stopping"),
    ("artifacts", "machine", "distributed", "cuda_graphs", "catalogue", "project"),
    ("ops",),
    ("packing",),
    ("backbones", "decoding"),
    ("strategies",),
    ("generator",),
    ("training", "results", "views"),
    ("check", "ingest", "embed", "split", "count", "quantize", "train", "dense", "evaluate", "track"),
    ("config", "serving"),
    ("presets", "doctor", "cli"),
)
STAGES = LAYERS[8]
LEAVES = {
    "actions": 0,
    "exposure_metrics": 0,
    "exposures": 1,
    "item_table": 1,
    "raw_ids": 1,
    "raw_times": 1,
    "saved_model": 1,
    "figures": 0,
    "metric_names": 0,
    "knobs": 0,
    "manifest": 0,
    "large_files": 0,
    "yaml_files": 0,
}  # rooms of their own that a few above use: their layer
BESIDE = {
    ("knobs", "errors"),
    ("locks", "errors"),
    ("locks", "printing"),
    ("manifest", "errors"),
    ("large_files", "manifest"),
    ("yaml_files", "errors"),
    ("errors", "printing"),
    ("progress", "printing"),
    ("metrics", "metric_names"),
    ("machine", "artifacts"),
    ("exposures", "artifacts"),
    ("raw_times", "artifacts"),
    ("distributed", "machine"),
    ("project", "artifacts"),
    ("views", "results"),
    ("results", "training"),
    ("faults", "errors"),
    ("presets", "doctor"),
    ("cli", "presets"),
    ("cli", "doctor"),
}
# Names that two modules may define, and why. Any other public class or function has a name to itself.
SHARED_NAMES = {
    "run": "each stage has one; a caller names the stage",
    "compare": "the command, and the function that it calls",
    "explain": "the command, and the function that it calls",
    "fetch": "the command, and the function that it calls",
    "publish": "the command, and the function that it calls",
    "recommend": "the command, and the function that it calls",
    "attend_to_ancestors": "one function, on a CPU and as a kernel",
    "best_continuations": "one function, on a CPU and as a kernel",
    "linear": "one function, on a CPU and as a kernel",
    "forward_kernel": "the two attentions, each in the file of its kernels",
    "backward_kernel": "the two attentions, each in the file of its kernels",
}
KERNELS = ("pipeline/ops/triton/", "pipeline/decoding/")


@pytest.fixture(scope="module")
def files(root: Path) -> list[str]:
    """Every Python file of the package."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "pipeline"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if name.endswith(".py") and (root / name).is_file()]


@cache
def imports(root: Path, file: str) -> frozenset[str]:
    """Files of the package that `file` imports, wherever the import stands."""
    found: set[str | None] = set()
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = file_of(root, f"{node.module}.{alias.name}")
                found.add(inner or file_of(root, node.module or ""))
        elif isinstance(node, ast.Import):
            found |= {file_of(root, alias.name) for alias in node.names}
    return frozenset(name for name in found if name is not None and name != file)


def file_of(root: Path, module: str) -> str | None:
    """`pipeline.ops.layout` -> its file; None of what is not of this package."""
    stem = Path(*module.split("."))
    paths = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((str(path) for path in paths if module.startswith("pipeline") and (root / path).is_file()), None)


def room(file: str) -> str:
    """The folder or file below pipeline/ that a file belongs to."""
    return Path(file).relative_to("pipeline").parts[0].removesuffix(".py")


def layer(name: str) -> int | None:
    """The number of a room's layer; None of the package's own two files, which hold nothing."""
    if name in ("__init__", "__main__"):
        return None
    return LEAVES[name] if name in LEAVES else next(i for i, rooms in enumerate(LAYERS) if name in rooms)


def test_every_room_has_its_layer_and_every_layer_its_rooms(files: list[str]) -> None:
    rooms = {room(file) for file in files} - {"__init__", "__main__"}
    assert rooms == {name for layer in LAYERS for name in layer} | set(LEAVES)


def test_every_import_of_the_package_exists(root: Path, files: list[str]) -> None:
    """An import inside a function, such as that of a GPU kernel, runs on some machines alone; here its text counts."""
    wrong = []
    for file in files:
        for node in ast.walk(ast.parse((root / file).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
                home = file_of(root, node.module or "")
                wrong += [
                    f"{file}: {node.module}.{alias.name}"
                    for alias in node.names
                    if not file_of(root, f"{node.module}.{alias.name}")
                    and not (home and alias.name in defined_names(root, home))
                ]
    assert not wrong


@cache
def defined_names(root: Path, file: str) -> frozenset[str]:
    """All that a module may be asked for: what it defines, assigns or imports at its top level."""
    found = set()
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return frozenset(found)


def test_imports_go_down(root: Path, files: list[str]) -> None:
    wrong = []
    for file in files:
        for target in imports(root, file):
            here, there = layer(room(file)), layer(room(target))
            if here is None or there is None or room(file) == room(target):
                continue
            if there > here or (there == here and (room(file), room(target)) not in BESIDE):
                wrong.append(f"{file} imports {target}")
    assert not wrong


def test_no_two_files_import_each_other_however_far_around(root: Path, files: list[str]) -> None:
    waiting = {file: set(imports(root, file)) & set(files) for file in files}
    while free := [file for file, targets in waiting.items() if not targets]:
        for file in free:
            del waiting[file]
        for targets in waiting.values():
            targets -= set(free)
    assert not waiting, "files in a circle, and those that lead to it"


def test_strategies_know_nothing_of_each_other(root: Path, files: list[str]) -> None:
    for file in files:
        folder = Path(file).parent
        if folder.parent == Path("pipeline/strategies"):
            others = [name for name in imports(root, file) if Path(name).parent.parent == folder.parent]
            assert all(Path(name).parent == folder for name in others), file


def test_triton_stays_with_the_kernels(root: Path, files: list[str]) -> None:
    users = [file for file in files if {"triton"} & top_level_imports(root, file)]
    assert users
    own = [file for file in users if file.startswith("pipeline/strategies/") and file.endswith("_kernel.py")]
    assert not [file for file in users if not file.startswith(KERNELS) and file not in own]


def test_mlflow_stays_in_few_files(root: Path, files: list[str]) -> None:
    assert [file for file in files if {"mlflow"} & top_level_imports(root, file)] == [
        "pipeline/results/mlflow_client.py",
        "pipeline/results/mlflow_model.py",
        "pipeline/serving/pyfunc_model.py",
    ]


def top_level_imports(root: Path, file: str) -> set[str]:
    """The first names of all that `file` imports."""
    found = set()
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


def test_no_strategy_names_a_device(root: Path, files: list[str]) -> None:
    """Which kernels serve a tensor is said in ops/; a strategy's own kernel is the one file that is for a GPU."""
    for file in files:
        if file.startswith("pipeline/strategies/") and not file.endswith("_kernel.py"):
            for node in ast.walk(ast.parse((root / file).read_text())):
                assert not (isinstance(node, ast.Constant) and node.value in ("cuda", "cpu")), file
                assert not (isinstance(node, ast.Attribute) and node.attr in ("is_cuda", "cuda")), file


def test_a_public_name_is_defined_in_one_module(root: Path, files: list[str]) -> None:
    """Classes, functions and aliases of types at the top level: a reader who meets a name need not ask which."""
    modules: dict[str, list[str]] = {}
    for file in files:
        for name in public_names(root, file):
            modules.setdefault(name, []).append(file)
    shared = {name: found for name, found in modules.items() if len(found) > 1}
    assert not {name: found for name, found in shared.items() if name not in SHARED_NAMES}
    assert set(SHARED_NAMES) <= set(shared), "names that no longer need leave"


def public_names(root: Path, file: str) -> set[str]:
    """The classes, functions and type aliases (`Rows = list[...]`) that a file defines at its top level."""
    found = set()
    for node in ast.parse((root / file).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            found |= {name for name in names if name[0].isupper() and name.upper() != name}
    return {name for name in found if not name.startswith("_")}


def test_files_and_functions_stay_small(root: Path, files: list[str]) -> None:
    """Kernels are not cut for a count."""
    for file in files:
        text = (root / file).read_text()
        assert text.count("\n") <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and not any(
                "triton.jit" in ast.unparse(d) for d in node.decorator_list
            ):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{file}: {node.name}"
