"""Name the code that training uses, so that no run goes on from the checkpoint of other code.

Who works on a strategy stops a run, edits a file and starts again. DVC would then record the weights of two codes as
those of the new one.
"""

import hashlib
from pathlib import Path

from pipeline.printing import say

PACKAGE = Path(__file__).parents[1]
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
    """Return the hex sha256 of the names and contents of all Python files that a stage which trains uses.

    Args:
        stage: the stage's folder below `package`.
        package: the folder of the package.
    """
    digest = hashlib.sha256()
    for name in (stage, *ENGINE):
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(package)).encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


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
