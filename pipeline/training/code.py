"""Name the code that training uses, so that no run goes on from the checkpoint of other code.

Who works on a strategy stops a run, edits a file and starts again. DVC would then record the weights of two codes as
those of the new one. Comments and docstrings train nothing: with other words a run goes on, and a time that was
measured before stays that of this code.
"""

import ast
import hashlib
import io
import tokenize
from pathlib import Path

from pipeline.printing import say

PACKAGE = Path(__file__).parents[1]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)  # what may have a docstring
# What dvc.yaml lists for a stage that trains, beside its own folder; it follows from the imports
# (tests/pipeline/test_graph.py).
ENGINE = (
    "training",
    "generator.py",
    "saved_model.py",
    "strategies",
    "decoding",
    "backbones",
    "packing",
    "ops",
    "catalogue.py",
    "cuda_graphs.py",
    "actions.py",
    "exposure_metrics.py",
    "exposures.py",
    "artifacts.py",
    "item_table.py",
    "distributed.py",
    "hashing.py",
    "machine.py",
    "metric_names.py",
    "metrics.py",
    "knobs.py",
    "large_files.py",
    "manifest.py",
)


def code_fingerprint(stage: str, package: Path = PACKAGE) -> str:
    """Return the hex sha256 of the names and the code of all Python files that a stage which trains uses.

    This file does not count: it names what the others compute.

    Args:
        stage: the stage's folder below `package`.
        package: the folder of the package.
    """
    digest = hashlib.sha256()
    for name in (stage, *ENGINE):
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            name_of_file = file.relative_to(package).as_posix()
            if name_of_file != "training/code.py":
                digest.update(name_of_file.encode())
                digest.update(hashlib.sha256(without_words(file.read_text()).encode()).digest())
    return digest.hexdigest()


def without_words(text: str) -> str:
    """Return Python code without its comments, docstrings and empty lines; code that cannot be parsed as it is.

    The result is the same under all versions of Python, unlike a printed syntax tree.
    """
    lines = text.splitlines()
    try:
        tree = ast.parse(text)
        comments = [one for one in tokenize.generate_tokens(io.StringIO(text).readline) if one.type == tokenize.COMMENT]
    except (SyntaxError, tokenize.TokenError):
        return text
    for comment in comments:
        row, column = comment.start
        lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            words = node.body[0]
            rows = slice(words.lineno - 1, words.end_lineno)
            before = lines[rows][0][: words.col_offset]
            # "def f(): 'words'" and "'words'; x = 1" stay, because code stands on the same line.
            if not before.strip() and lines[rows][-1].rstrip().endswith(('"', "'")):
                instead = before + "..." if len(node.body) == 1 else ""  # a block is never empty
                lines[rows] = [instead] + [""] * (len(lines[rows]) - 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def checkpoint_name(run: str, code: str) -> str:
    """Return the name of a run's checkpoint: 8 digits of the fingerprint of settings and inputs, and 8 of the code."""
    return run[:8] + code[:8]


def name_other_code(checkpoint: Path, stage: str) -> None:
    """Print a line where only other code has a checkpoint of the stage's run, whose folder is `checkpoint`."""
    if checkpoint.exists():
        return
    saved = [path for path in checkpoint.parent.glob(f"{checkpoint.name[:8]}*") if (path / "checkpoint.pt").exists()]
    if saved:
        say(
            f"{stage}: other code made the checkpoint of these settings, so it is not resumed and training starts "
            f"anew; it goes on with the former code, and may be deleted: {', '.join(map(str, sorted(saved)))}"
        )
