"""The pages of docs/ against the project: files, rooms and stages that they name are those that there are."""

import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_architecture import LAYERS, LEAVES

PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md")  # CHANGELOG.md names what is no more
FOREIGN = {"modeling_t5.py", "modules/hstu/hstu.py"}  # files of the papers' code
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


@pytest.fixture(scope="module")
def files(root: Path) -> list[str]:
    """Every file that git tracks."""
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (root / name).is_file()]


@pytest.fixture(scope="module")
def architecture(root: Path) -> str:
    return (root / "docs/architecture.md").read_text()


def pages(root: Path) -> list[Path]:
    return [page for pattern in PAGES for page in sorted(root.glob(pattern))]


def holds_code(path: Path) -> bool:
    """Whether a file holds more than a docstring."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


def test_the_architecture_has_a_phrase_for_every_file_and_no_other(
    root: Path, files: list[str], architecture: str
) -> None:
    code = [name for name in files if name.startswith(("pipeline/", "benchmarks/")) and name.endswith(".py")]
    wanted = {
        *(name for name in code if not name.endswith("__init__.py") or holds_code(root / name)),
        *(name for name in files if name.startswith("presets/")),
    }
    listed = re.findall(r"^- `([^`]+)`: \S", architecture.split("## Every file")[1], re.MULTILINE)
    assert sorted(wanted - set(listed)) == [], "files without a phrase in docs/architecture.md"
    others = {
        name for name in listed if "/" not in name and name in files
    }  # files of the root, where users have files too
    assert sorted(set(listed) - wanted - others) == [], "phrases in docs/architecture.md without a file"
    assert len(listed) == len(set(listed))


def test_the_picture_and_the_table_name_every_room(root: Path, architecture: str) -> None:
    rooms = {*(room for layer in LAYERS for room in layer), *LEAVES}
    picture = set(re.findall(r'<text class="name"[^>]*>([^<]+)<', (root / "docs/architecture.svg").read_text()))
    assert picture == rooms
    table = architecture.split("## The layers")[1].split("## The stages")[0]
    assert not [room for room in rooms if f"`{room}`" not in table]


def test_the_stages_read_and_write_what_dvc_yaml_says(root: Path, architecture: str) -> None:
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    first = tuple(f"| {name} |" for name in stages)
    rows = [line.split(" | ") for line in architecture.splitlines() if line.startswith(first)]
    assert [row[0].strip("| ") for row in rows] == list(stages)
    for row, stage in zip(rows, stages.values(), strict=True):
        reads = [path for path in stage["deps"] if not path.startswith("pipeline/") and path != "data/checked.txt"]
        assert re.findall(r"`([^`]+)`", row[1]) == reads
        assert re.findall(r"`([^`]+)`", row[2]) == outputs(stage)


def outputs(stage: dict[str, Any]) -> list[str]:
    tracked = [*stage.get("metrics", []), *stage.get("plots", [])]
    return [*stage["outs"], *(next(iter(entry)) for entry in tracked)]


def test_every_python_file_that_a_text_names_is_there(root: Path, files: list[str]) -> None:
    """In pages, and in the docstrings of the package. Names with a capital, such as NAME.py, stand for any."""
    texts = {str(page.relative_to(root)): page.read_text() for page in pages(root)}
    for name in files:
        if name.startswith(("pipeline/", "benchmarks/")) and name.endswith(".py"):
            nodes = [node for node in ast.walk(ast.parse((root / name).read_text())) if isinstance(node, DOCUMENTED)]
            texts[name] = "\n".join(filter(None, (ast.get_docstring(node) for node in nodes)))
    endings = {"/".join(Path(name).parts[start:]) for name in files for start in range(len(Path(name).parts))}
    gone = [
        f"{name}: {mention}"
        for name, text in texts.items()
        for mention in re.findall(r"(?<![\w./])[\w/]+\.py\b", text)
        if mention == mention.lower() and mention not in endings | FOREIGN
    ]
    assert not gone


def test_every_test_that_a_page_names_is_there(root: Path, files: list[str]) -> None:
    there = {
        name
        for file in files
        if file.startswith("tests/") and file.endswith(".py")
        for name in re.findall(r"^ *def (test_\w+)\(", (root / file).read_text(), re.MULTILINE)
    }
    named = {name for page in pages(root) for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert named
    assert not named - there


def test_links_between_pages_lead_somewhere(root: Path) -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*pages(root), root / "CHANGELOG.md"]
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not broken
