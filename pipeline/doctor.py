"""Check whether the machine, the checkout and params.yaml are ready to run, for `python -m pipeline doctor`.

Each check is a function that returns one Check. Nothing is changed, except that a temporary file is made beside the
tracking store, to see whether the store can be written.
"""

import dataclasses
import glob
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import Params, load_params
from pipeline.errors import UserError
from pipeline.ingest.tracked import git, lacking
from pipeline.printing import json_text, say
from pipeline.results.tracking_uri import database_file, tracking_uri

TESTED = ((3, 11), (3, 12))
MINIMUM_FREE_GIB = 2.0


@dataclass(frozen=True)
class Check:
    """The result of one check. `fix` says what to do, unless the state is ok."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def examine(root: Path) -> list[Check]:
    """Run every check on the project in folder `root`."""
    params = check_params(root)
    checks = [check_python(), check_torch(), check_faiss(), check_dvc(root), checkgit(root), params]
    if params.state == "ok":
        loaded = load_params(root / "params.yaml")
        checks += [check_raw_log(root, loaded), check_engine(loaded)]
    return [*checks, check_store(), check_disk(root)]


def show(checks: list[Check], as_json: bool) -> None:
    """Print one line per check, with what to do below a check that is not ok; or print a JSON list."""
    if as_json:
        say(json_text([dataclasses.asdict(check) for check in checks]), answer=True)
        return
    for check in checks:
        say(f"{check.state:5}{check.name:10}{check.found}", answer=True)
        if check.state != "ok":
            say(*(f"{'':15}{line}" for line in check.fix.split("\n")), answer=True)


def check_python() -> Check:
    """Check that Python is a version that the tests run on."""
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] in TESTED:
        return Check("python", "ok", found)
    return Check("python", "fail", found, "install with Python 3.11 or 3.12: make setup PYTHON=python3.12")


def check_torch() -> Check:
    """Check that torch is installed, and name the device that training would use."""
    try:
        import torch
    except ImportError as error:
        return Check("torch", "fail", str(error), "install the project's packages: make setup")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check("torch", "ok", f"{torch.__version__}, {names}")
    cores = len(os.sched_getaffinity(0))
    return Check("torch", "ok", f"{torch.__version__}, no GPU: training would use {cores} CPU cores")


def check_faiss() -> Check:
    """Check that faiss-cpu or faiss-gpu is installed; the two exclude each other."""
    try:
        import faiss
    except (ImportError, RuntimeError, OSError) as error:  # faiss-gpu looks for CUDA's libraries while it is imported
        fix = "run `pip install -e '.[cpu]'`, or `pip install -e '.[gpu]'`, which brings CUDA 12 libraries"
        return Check("faiss", "fail", (str(error) or type(error).__name__).splitlines()[0], fix)
    kind = f"gpu, sees {faiss.get_num_gpus()}" if hasattr(faiss, "StandardGpuResources") else "cpu"
    return Check("faiss", "ok", f"{faiss.__version__}, {kind}")


def check_dvc(root: Path) -> Check:
    """Check that `root` is a DVC project, and that dvc and python of this environment come first on the PATH."""
    if not (root / ".dvc" / "config").is_file():
        return Check("dvc", "fail", f"{root.resolve()} is no DVC project", "run doctor in a clone of the repository")
    installed = Path(sys.executable).with_name("dvc")
    if not installed.exists():
        fix = "install the project's packages: make setup"
        return Check("dvc", "fail", f"dvc is not installed beside {sys.executable}", fix)
    for command in ("dvc", "python"):
        if shutil.which(command) != str(installed.with_name(command)):
            return Check(
                "dvc",
                "warn",
                f"`{command}` means {shutil.which(command)}, not the one of this environment",
                "activate the environment before `dvc repro`: . .venv/bin/activate",
            )
    return Check("dvc", "ok", str(installed))


def checkgit(root: Path) -> Check:
    """Check that there is a commit, from which experiments start, and that tracked files do not differ from it."""
    commit = git(root, "log", "-1", "--format=%h %s")
    if commit is None:
        return Check(
            "git",
            "fail",
            "there is no git repository, or it has no commit",
            "DVC experiments start from a commit: git init && git add -A && git commit -m start",
        )
    changed = git(root, "status", "--porcelain", "--untracked-files=no") or ""
    if changed:
        return Check(
            "git",
            "warn",
            f"{commit}, and {len(changed.splitlines())} changed files",
            "commit these files to make results traceable (after a run dvc.lock and reports/ too)",
        )
    return Check("git", "ok", commit)


def check_identity(root: Path) -> Check:
    """Check that git has a name and an address to write into commits, as DVC's experiments are commits."""
    lacks = []
    for what in ("name", "email"):
        found = git(root, "config", f"user.{what}")
        if not all(os.environ.get(f"GIT_{who}_{what.upper()}", found) for who in ("AUTHOR", "COMMITTER")):
            lacks.append(f"user.{what}")
    if not lacks:
        return Check("identity", "ok", "git has a name and an address for commits")
    return Check(
        "identity",
        "fail",
        f"git has no {' and no '.join(lacks)}",
        "DVC's experiments are commits, and `dvc exp run` fails without: git config --global user.name 'YOUR NAME' && "
        "git config --global user.email YOU@EXAMPLE.ORG",
    )


def check_params(root: Path) -> Check:
    """Run the check that every stage begins with."""
    try:
        params = load_params(root / "params.yaml")
    except UserError as error:
        return Check("params", "fail", error.what, error.fix)
    return Check("params", "ok", f"dataset {params.dataset}, strategy {params.strategy}, seed {params.seed}")


def check_raw_log(root: Path, params: Params) -> Check:
    """Check that ingest.path exists, and that queued experiments will find it too."""
    path = Path(params.ingest.path)
    if glob.has_magic(str(path)):
        return Check(
            "raw log",
            "fail",
            f"ingest.path {path} is a pattern, but DVC can only depend on files and folders",
            "set ingest.path to the folder and ingest.files to the pattern",
        )
    if not (root / path).exists():
        return Check(
            "raw log",
            "fail",
            f"ingest.path {path} is not here",
            "run `python -m pipeline fetch`, or set ingest.path to the folder that holds the files",
        )
    inside = (root / path).resolve().is_relative_to(root.resolve())
    if not inside and not path.is_absolute():
        return Check(
            "raw log",
            "warn",
            f"{path} leaves the project by a relative path",
            "queued experiments run in a copy of the project, where this path leads nowhere: give an absolute path",
        )
    if missing := lacking(root, path):
        fix = f"queued experiments run in a copy of what git and DVC track: {missing.cure}"
        return Check("raw log", "warn", missing.reason, fix)
    return Check("raw log", "ok", str(path))


def check_engine(params: Params) -> Check:
    """Check that Spark has pyspark and Java, if `ingest.engine` is spark; DuckDB needs nothing."""
    if params.ingest.engine == "duckdb":
        return Check("engine", "ok", "duckdb")
    try:
        import pyspark
    except ImportError:
        fix = "run `pip install -e '.[spark]'`, or set ingest.engine to duckdb"
        return Check("engine", "fail", "ingest.engine is spark and pyspark is missing", fix)
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        return Check("engine", "fail", "ingest.engine is spark and Java is missing", "install Java 17 or newer")
    return Check("engine", "ok", f"spark {pyspark.__version__}")


def check_store() -> Check:
    """Check that MLflow's store can be written; a server is only named, not called."""
    try:
        uri = tracking_uri()
    except UserError as error:
        return Check("mlflow", "fail", f"{error.what}: {error.why}", error.fix)
    path = database_file(uri)
    if path is None:
        return Check("mlflow", "ok", uri)
    try:
        if path.exists():
            path.open("ab").close()
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        return Check(
            "mlflow",
            "fail",
            f"{path}: {error.strerror}",
            "make the file and its folder writable, or set MLFLOW_TRACKING_URI to another store",
        )
    return Check("mlflow", "ok", uri)


def check_disk(root: Path) -> Check:
    """Check the free space of the disk that holds DVC's cache and the models."""
    free = shutil.disk_usage(root).free / 2**30
    if free < MINIMUM_FREE_GIB:
        fix = "DVC's cache holds every earlier result: `dvc gc -w` removes those that the workspace does not use"
        return Check("disk", "warn", f"{free:.1f} GiB free", fix)
    return Check("disk", "ok", f"{free:.1f} GiB free")
