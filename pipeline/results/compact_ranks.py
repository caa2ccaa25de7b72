"""Store the ranks of an evaluation in some kilobytes, without any id, so that they can be compared later and elsewhere.

A file holds one byte per user for each of the model's rankings, in the order of the split's test users, and a bit for a
tie. Who the users and their targets are is stored as a hash alone. Files, and the ranks.parquet of a project, are
paired where the hash is equal.

Shape legend: U test users.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.results.ranks import COLUMNS, Origin, Ranks, ranks_frame

SUFFIX = ".npz"
RANKS = ("rank", "bucket_rank", "other_rank")  # columns of ranks.parquet that are stored
WORST = 255  # also stands for every worse rank
UNKNOWN = -1  # in the columns that are not stored


def compact_bytes(ranks: Ranks, settings: Mapping[str, Any]) -> bytes:
    """Return the file's content; equal ranks and settings give equal bytes.

    Args:
        ranks: of an evaluation.
        settings: the run's parameters under dotted names.
    """
    users = ranks.users
    about = {"origin": asdict(ranks.origin), "targets": ranks.targets, "settings": dict(settings), "users": len(users)}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        **{name: np.minimum(users[name].to_numpy(), WORST).astype(np.uint8) for name in RANKS},
        tie=np.packbits(users["tie"].to_numpy()),
        about=np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8),
    )
    return buffer.getvalue()


def read_compact(path: Path) -> tuple[Ranks, dict[str, Any]]:
    """Read such a file.

    Returns:
        The ranks, whose users are numbered in the order of the split and whose other columns are `UNKNOWN`, and the
        run's parameters.

    Raises:
        UserError: the file is missing, damaged, or none of these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            count = about["users"]
            stored = {name: file[name] for name in RANKS}
            stored["tie"] = np.unpackbits(file["tie"], count=count)
        if {len(values) for values in stored.values()} != {count}:
            raise ValueError("its columns have other lengths than it has users")
        columns = {name: np.full(count, UNKNOWN) for name in COLUMNS} | stored | {"user_id": np.arange(count)}
        return Ranks(ranks_frame(**columns), Origin(**about["origin"]), about["targets"]), about["settings"]
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read as compact ranks: {error}",
            "it is missing, damaged, or another program wrote it",
            "restore the file, for example with `git checkout`",
        ) from None
