"""Find the commit and the DVC experiment that a result comes from."""

import os
import subprocess

# Files that the pipeline itself writes into the working tree; they say nothing about the code that ran.
OWN_OUTPUTS = (":(exclude)dvc.lock", ":(exclude)reports")


def provenance() -> dict[str, str]:
    """Return the tags git_commit, git_dirty, dvc_experiment and dvc_baseline.

    git_dirty: whether tracked files other than results differ from the commit. A value is empty where git or DVC has
    nothing to say, such as the experiment's name under `dvc repro`. The commit has a second tag, which MLflow's page
    reads.
    """
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *OWN_OUTPUTS)
    commit = _git("rev-parse", "HEAD")
    return {
        "git_commit": commit,
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "dvc repro",
        "mlflow.source.type": "LOCAL",
        "git_dirty": str(bool(changed)).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }


def _git(*arguments: str) -> str:
    """Return what a git command prints; empty where git fails, such as outside of a repository."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
