"""Which commit and which DVC experiment a result comes from."""

import os
import subprocess

# What the pipeline itself writes into the working tree; it says nothing about the code that ran.
OWN_OUTPUTS = (":(exclude)dvc.lock", ":(exclude)reports")


def provenance() -> dict[str, str]:
    """Tags: git_commit, git_dirty (tracked files other than results differ), dvc_experiment and dvc_baseline.

    Empty values where git or DVC has nothing to say, such as the experiment's name under `dvc repro`. The commit stands
    also where MLflow's own page looks for it.
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
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
