"""Find the project's folder, also from inside the copy in which DVC runs a queued experiment.

A copy lies in .dvc/tmp/exps of the project and is deleted afterwards. What must outlive it, such as the checkpoint of a
run that was killed, belongs into the project's scratch folder.
"""

import os
from pathlib import Path

from pipeline.artifacts import SCRATCH

COPIES = Path(".dvc/tmp/exps")  # where DVC makes the copies, below the project


def project_root() -> Path:
    """Return the project's folder.

    DVC gives it to its stages in DVC_ROOT. In a stage run by hand it is the nearest folder upwards that has `.dvc`, or,
    where that folder is a copy for a queued experiment, the project that the copy was made of.
    """
    if declared := os.environ.get("DVC_ROOT"):
        return Path(declared)
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)
    parents = list(root.parents)
    owners = [owner for owner in parents if root.is_relative_to(owner / COPIES)]
    return owners[0] if owners else root


def shared_scratch() -> Path:
    """Return the project's scratch folder, which all its queued experiments share; relative where it is below here."""
    root = project_root()
    return SCRATCH if root.resolve() == Path.cwd().resolve() else root / SCRATCH
