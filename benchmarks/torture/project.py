"""A small finished project, its copies, and the digest of what its stages wrote."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import CLOCK
from pipeline.manifest import CHECKSUM
from pipeline.metric_names import MEASURED
from pipeline.presets.apply import apply_preset

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("ingest", "embed", "quantize", "split", "count", "train", "dense", "evaluate", "track")
BY_HAND = ("check", *STAGES[:-1])  # what runs in a project that DVC did not make; track reads dvc.lock
# Folders and files that each stage writes, and that must have the same bytes after every recovery.
WRITES: dict[str, tuple[str, ...]] = {
    "ingest": ("data/interactions",),
    "embed": ("data/embeddings",),
    "quantize": ("data/sids",),
    "split": ("data/splits",),
    "count": ("models/counting",),
    "train": (
        "models/generator",
        "reports/skipped",
        "reports/timings.json",
        "reports/history.csv",
        "reports/kept_by_level.csv",
        "reports/kept_by_position.csv",
        "reports/passes.csv",
    ),
    "dense": ("models/dense", "reports/dense.json"),
    "evaluate": (
        "models/fusion",
        "reports/ranks.parquet",
        "reports/metrics.json",
        "reports/by_history.csv",
        "reports/by_popularity.csv",
    ),
    "track": (),  # the page holds measured seconds
}
SMALL = [
    "track.live=false",  # a killed training would leave half a database until the next one
    "embed.dimensions=16",
    "quantize.codes=8",
    "quantize.iterations=10",
    "quantize.max_collision_rate=1.0",
    "backbone.encoder_layers=1",
    "backbone.decoder_layers=1",
    "backbone.d_model=16",
    "backbone.heads=2",
    "backbone.d_head=8",
    "backbone.d_ff=32",
    "train.max_windows=1500",
    "train.batch_tokens=1024",
    "train.validate_every=20",
    "train.checkpoint_every=5",
    "train.threads=1",
    "train.compile=false",
    "dense.dim=16",
    "dense.layers=1",
    "dense.max_epochs=2",
    "dense.batch_items=1024",
    "dense.validate_every=20",
    "dense.checkpoint_every=1",
    "dense.threads=1",
    "dense.compile=false",
    "evaluate.bootstrap_samples=50",
]


def environment() -> dict[str, str]:
    """Return the variables of a user's shell, in which `python`, `dvc` and the package are those of the copy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",
        "DVC_NO_ANALYTICS": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        **{f"GIT_{who}_NAME": "Torture" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "torture@example.org" for who in ("AUTHOR", "COMMITTER")},
    }


def lay_out(folder: Path, users: int = 300, settings: Sequence[str] = ()) -> None:
    """Copy the repository's files, with a small scenario and model; `settings` are more of params.yaml."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "benchmarks/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    scenario = folder / "data/demo/scenario.yaml"
    text = scenario.read_text().replace("users: 2000", f"users: {users}").replace("items: 1000", "items: 100")
    scenario.write_text(text)
    apply_preset("demo", [*SMALL, *settings], folder=folder / "presets", params=folder / "params.yaml")


def build(folder: Path) -> None:
    """Make the project: its files, `dvc repro`, and a commit."""
    lay_out(folder)
    commands = (["git", "init", "-q"], ["git", "add", "-A"], ["git", "commit", "-qm", "Start"], ["dvc", "repro"])
    for command in (*commands, ["git", "add", "-A"], ["git", "commit", "-qm", "Results"]):
        subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True)


def copy(reference: Path, folder: Path, *, dvc: bool = False) -> Path:
    """Copy the project; without `dvc` leave out git and DVC's cache, which a stage run by hand does not need."""
    shutil.rmtree(folder, ignore_errors=True)
    left_out = () if dvc else (".dvc", ".git", "pipeline", "examples")
    shutil.copytree(reference, folder, symlinks=True, ignore=shutil.ignore_patterns(*left_out, "__pycache__"))
    return folder


def remove(folder: Path, stage: str) -> None:
    """Remove what a stage wrote, as DVC does before it runs the stage."""
    for name in WRITES[stage]:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def digest(folder: Path, stages: tuple[str, ...] = STAGES) -> dict[str, str]:
    """Return the sha256 of every file that the stages wrote, without measured numbers."""
    found = {}
    for name in (name for stage in stages for name in WRITES[stage]):
        path = folder / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                content = file.read_bytes()
                if file.name in ("timings.json", "dense.json", "metrics.json", "details.json"):
                    content = json.dumps(_unmeasured(content)).encode()
                found[str(file.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return {name: value for name, value in found.items() if "manifest" not in name or "reports" not in name}


def _unmeasured(content: bytes) -> Any:
    try:
        measured = MEASURED | {CHECKSUM, *CLOCK}
        return {key: value for key, value in json.loads(content).items() if key not in measured}
    except (ValueError, AttributeError):
        return content.decode(errors="replace")
