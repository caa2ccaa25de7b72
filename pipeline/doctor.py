"""`python -m pipeline doctor`: is this machine, this checkout and this params.yaml ready to run?

Each check is a function that returns one Check; nothing here changes anything, except that the tracking store's folder
is touched to see whether it can be written.
"""

import dataclasses
import glob
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import Params, load_params
from pipeline.errors import UserError
from pipeline.results.tracking_uri import tracking_uri

TESTED = ((3, 11), (3, 12))
MINIMUM_FREE_GIB = 2.0


@dataclass(frozen=True)
class Check:
    """One finding. `fix` says what to do unless the state is ok."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def examine(root: Path) -> list[Check]:
    """Every check of the project in folder `root`."""
    params = check_params(root)
    checks = [check_python(), check_torch(), check_faiss(), check_dvc(root), check_git(root), params]
    if params.state == "ok":
        loaded = load_params(root / "params.yaml")
        checks += [check_raw_log(root, loaded), check_engine(loaded)]
    return [*checks, check_store(), check_disk(root)]


def show(checks: list[Check], as_json: bool) -> None:
    """One line per check, with what to do under those that are not ok; or a JSON list."""
    if as_json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
        return
    for check in checks:
        print(f"{check.state:5}{check.name:10}{check.found}")
        if check.state != "ok":
            print(*(f"{'':15}{line}" for line in check.fix.splitlines()), sep="\n")


def check_python() -> Check:
    """The versions that the suite was run on."""
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] in TESTED:
        return Check("python", "ok", found)
    return Check("python", "fail", found, "use Python 3.11 or 3.12: make setup PYTHON=python3.12")


def check_torch() -> Check:
    """Which device training would take."""
    try:
        import torch
    except ImportError as error:
        return Check("torch", "fail", str(error), "make setup")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check("torch", "ok", f"{torch.__version__}, {names}")
    return Check("torch", "ok", f"{torch.__version__}, no GPU: trains on {len(os.sched_getaffinity(0))} CPU cores")


def check_faiss() -> Check:
    """faiss-cpu or faiss-gpu; they exclude each other."""
    try:
        import faiss
    except ImportError as error:
        return Check("faiss", "fail", str(error), "pip install faiss-cpu (or faiss-gpu, with CUDA 12 libraries)")
    kind = f"gpu, sees {faiss.get_num_gpus()}" if hasattr(faiss, "StandardGpuResources") else "cpu"
    return Check("faiss", "ok", f"{faiss.__version__}, {kind}")


def check_dvc(root: Path) -> Check:
    """A DVC project, and the dvc command of this environment first on the PATH."""
    if not (root / ".dvc" / "config").is_file():
        return Check("dvc", "fail", f"{root.resolve()} is no DVC project", "run from a clone of the repository")
    installed = Path(sys.executable).with_name("dvc")
    if not installed.exists():
        return Check("dvc", "fail", f"not installed beside {sys.executable}", "make setup")
    for command in ("dvc", "python"):
        if shutil.which(command) != str(installed.with_name(command)):
            return Check(
                "dvc",
                "warn",
                f"`{command}` means {shutil.which(command)}, not this environment's",
                "activate the environment before `dvc repro`: . .venv/bin/activate",
            )
    return Check("dvc", "ok", str(installed))


def check_git(root: Path) -> Check:
    """Commit and whether tracked files differ from it; experiments hang on a commit."""
    commit = _git(root, "log", "-1", "--format=%h %s")
    if commit is None:
        return Check(
            "git",
            "fail",
            "no git repository, or one without a commit",
            "git init && git add -A && git commit -m start: DVC experiments start from a commit",
        )
    changed = _git(root, "status", "--porcelain", "--untracked-files=no") or ""
    if changed:
        return Check(
            "git",
            "warn",
            f"{commit}, and {len(changed.splitlines())} changed files",
            "commit them to make results traceable (dvc.lock and reports/ too, after a run)",
        )
    return Check("git", "ok", commit)


def check_params(root: Path) -> Check:
    """The same check that every stage begins with."""
    try:
        params = load_params(root / "params.yaml")
    except UserError as error:
        return Check("params", "fail", error.what, error.fix)
    return Check("params", "ok", f"dataset {params.dataset}, strategy {params.strategy}, seed {params.seed}")


def check_raw_log(root: Path, params: Params) -> Check:
    """ingest.path exists, and queued experiments will find it too."""
    path = Path(params.ingest.path)
    if glob.has_magic(str(path)):
        return Check(
            "raw log",
            "fail",
            f"ingest.path {path} is a pattern, and DVC depends on files and folders",
            "set ingest.path to the folder and ingest.files to the pattern",
        )
    if not (root / path).exists():
        return Check(
            "raw log",
            "fail",
            f"ingest.path {path} is not here",
            "python -m pipeline fetch, or set ingest.path to where the files are",
        )
    inside = (root / path).resolve().is_relative_to(root.resolve())
    if not inside and not path.is_absolute():
        return Check(
            "raw log",
            "warn",
            f"{path} leaves the project by a relative path",
            "queued experiments run in a copy elsewhere and will not find it: give an absolute path",
        )
    if inside and not _git(root, "ls-files", "--", str(path)) and not (root / f"{path}.dvc").exists():
        return Check(
            "raw log",
            "warn",
            f"{path} is tracked neither by git nor by DVC",
            f"queued experiments run in a copy of what is tracked: dvc add {path} && git add {path}.dvc",
        )
    return Check("raw log", "ok", str(path))


def check_engine(params: Params) -> Check:
    """Spark needs Java and its extra; DuckDB needs nothing."""
    if params.ingest.engine == "duckdb":
        return Check("engine", "ok", "duckdb")
    try:
        import pyspark
    except ImportError:
        return Check("engine", "fail", "ingest.engine is spark and pyspark is missing", "pip install -e '.[spark]'")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        return Check("engine", "fail", "ingest.engine is spark and Java is missing", "install Java 17 or newer")
    return Check("engine", "ok", f"spark {pyspark.__version__}")


def check_store() -> Check:
    """MLflow's store can be written; a server is only named, not called."""
    uri = tracking_uri()
    if not uri.startswith("sqlite:///"):
        return Check("mlflow", "ok", uri)
    path = Path(uri.removeprefix("sqlite:///"))
    try:
        if path.exists():
            path.open("ab").close()
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        return Check(
            "mlflow",
            "fail",
            f"{path}: {error.strerror}",
            "make it writable, or set MLFLOW_TRACKING_URI to another store",
        )
    return Check("mlflow", "ok", uri)


def check_disk(root: Path) -> Check:
    """Free space where the cache and the models go."""
    free = shutil.disk_usage(root).free / 2**30
    if free < MINIMUM_FREE_GIB:
        return Check("disk", "warn", f"{free:.1f} GiB free", "DVC's cache keeps every result; `dvc gc -w` empties it")
    return Check("disk", "ok", f"{free:.1f} GiB free")


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, None where it fails."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
