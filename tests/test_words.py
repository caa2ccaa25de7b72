"""The house's words: docstrings are sentences, and some words stand for one thing only (docs/glossary.md)."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

# A docstring that begins with one of these has no verb of its own.
FRAGMENTS = ("Of", "That", "Those", "Whether", "By", "Which", "What", "Where", "How", "Whose", "With")
# Each had half a dozen meanings: position, slot, rank, folder, capacity.
UNUSED_WORDS = re.compile(r"(?<!in )\bplaces?\b|\brooms?\b", re.IGNORECASE)
KERNELS = ("_kernels.py", "_kernel.py", "_triton.py")


@pytest.fixture(scope="module")
def files(root: Path) -> list[Path]:
    """Every Python file of the package, the benchmarks and the examples."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "pipeline", "benchmarks", "examples"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return [root / name for name in listed.stdout.splitlines() if name.endswith(".py") and (root / name).is_file()]


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def comments(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each comment."""
    for token in tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_a_docstring_begins_with_a_sentence(files: list[Path]) -> None:
    wrong = [
        f"{file}:{line}: {text.splitlines()[0]}"
        for file in files
        for line, text in docstrings(file)
        if text.split(maxsplit=1)[0].rstrip(",:") in FRAGMENTS
    ]
    assert not wrong


def test_words_of_many_meanings_are_not_used(files: list[Path]) -> None:
    wrong = [
        f"{file}:{line}: {found[0]}"
        for file in files
        for line, text in (*docstrings(file), *comments(file))
        if (found := UNUSED_WORDS.search(text))
    ]
    assert not wrong


def test_only_a_pair_is_assigned_at_once(files: list[Path]) -> None:
    """`a, b, c = x, y, z` hides what changed, and a debugger cannot stop inside. Kernels keep the form of the field."""
    wrong = []
    for file in files:
        if file.name.endswith(KERNELS) or "ops/triton" in file.as_posix():
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
                many = [target for target in node.targets if isinstance(target, ast.Tuple) and len(target.elts) > 2]
                wrong += [f"{file}:{node.lineno}: {ast.unparse(node)}" for _ in many]
    assert not [line for line in wrong if "q, k, v" not in line]


def test_a_dataclass_of_many_fields_takes_them_by_name(files: list[Path]) -> None:
    wrong = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                made = [text for text in map(ast.unparse, node.decorator_list) if text.startswith("dataclass")]
                fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
                if made and len(fields) > 5 and "kw_only=True" not in made[0]:
                    wrong.append(f"{file}:{node.lineno}: {node.name}")
    assert not wrong
