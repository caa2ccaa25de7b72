"""Find the commit and the DVC experiment that a result comes from."""

import os
import subprocess

CODE = ("pipeline", "dvc.yaml", "constraints.txt", "pyproject.toml")  # what decides how a result is made, but settings


def provenance() -> dict[str, str]:
    """Return the tags git_commit, git_dirty, dvc_experiment and dvc_baseline.

    git_dirty: whether the code differs from the commit, new files included; params.yaml is no code, and the run has all
    of its values. A value is empty where git or DVC has nothing to say, such as the experiment's name under `dvc
    repro`. The commit has a second tag, which MLflow's page reads.
    """
    changed = _git("status", "--porcelain", "--untracked-files=all", "--", *CODE)
    commit = _git("rev-parse", "HEAD")
    experiment = os.environ.get("DVC_EXP_NAME", "")
    return {
        "git_commit": commit,
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "dvc exp run" if experiment else "dvc repro",
        "mlflow.source.type": "LOCAL",
        "git_dirty": str(bool(changed)).lower(),
        "dvc_experiment": experiment,
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }


def _git(*arguments: str) -> str:
    """Return what a git command prints; empty where git fails, such as outside of a repository."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
