"""reports/ranks.parquet: one row per test user, and in the file's schema what the ranks were made from.

Numbers alone cannot say which model they belong to, so the file carries a content hash of it. Whoever shows or compares
results checks it here: DVC removes and restores files one by one, and a stopped run leaves old metrics beside a new
model.
"""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.artifacts import Splits, fingerprint, read_json, write_parquet
from pipeline.errors import UserError
from pipeline.metrics import recall_at

if TYPE_CHECKING:
    from pipeline.generator import Generator

RANKS_FILE, METRICS_FILE = "ranks.parquet", "metrics.json"
KEY = "sidpipe"  # of the schema's metadata
# user_id, item_id (the target), rank, bucket_rank (0: not found), history_length, target_popularity (its training
# interactions), tie (an earlier interaction of the user has the same timestamp), popularity_rank, cooccurrence_rank
COLUMNS = (
    "user_id",
    "item_id",
    "rank",
    "bucket_rank",
    "history_length",
    "target_popularity",
    "tie",
    "popularity_rank",
    "cooccurrence_rank",
)


@dataclass(frozen=True)
class Origin:
    """What made the ranks. model and splits: content hashes. recipe: hash of all settings of the model but its seed."""

    model: str
    splits: str
    dataset: str
    strategy: str
    seed: int
    recipe: str
    beam: int
    decoding: str
    filter_seen: bool


@dataclass(frozen=True)
class Ranks:
    """The file's content; rows by user_id."""

    users: pd.DataFrame
    origin: Origin

    def write(self, path: Path) -> None:
        write_parquet(path, self.users[list(COLUMNS)], {KEY: json.dumps(asdict(self.origin))})

    @classmethod
    def read(cls, path: Path) -> "Ranks":
        """Raises UserError when the file is missing, damaged, or not written by evaluate."""
        if not path.exists():
            raise UserError(
                f"{path} is not here", "evaluate writes it", "run `dvc repro`, or `dvc checkout` if it was made before"
            )
        return cls.from_bytes(path.read_bytes(), str(path))

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> "Ranks":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(io.BytesIO(content))
            origin = Origin(**json.loads((table.schema.metadata or {})[KEY.encode()]))
            return cls(table.to_pandas()[list(COLUMNS)], origin)
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{name} cannot be read as the ranks of an evaluation: {error}",
                "it is damaged, or another version or program wrote it",
                "run `dvc repro` to evaluate again",
            ) from None


def model_hash(generator: Path) -> str:
    """Content hash of models/generator, wherever the folder stands."""
    return fingerprint(*sorted(path for path in generator.iterdir() if path.is_file()))


def origin_of(
    generator: Path, splits: Path, config: dict[str, Any], *, beam: int, decoding: str, filter_seen: bool
) -> Origin:
    """Origin of ranks that the model in `generator`, whose config.json is `config`, gives on `splits`."""
    varies = ("seed", "fingerprints", "widths")  # from seed to seed, the widest collision group differs too
    recipe = {key: value for key, value in config.items() if key not in varies}
    return Origin(
        model_hash(generator),
        fingerprint(splits),
        config["dataset"],
        config["strategy"],
        config["seed"],
        fingerprint(recipe),
        beam,
        decoding,
        filter_seen,
    )


def check_fit(generator: "Generator", folder: Path, splits: Splits, splits_folder: Path) -> None:
    """Raises UserError unless the model was trained on these very splits."""
    known = len(generator.items)
    if known != splits.summary["items"]:
        what = f"{folder} knows {known:,} items, {splits_folder} has {splits.summary['items']:,}"
    elif generator.config["fingerprints"]["splits"] != fingerprint(splits_folder):
        what = f"{folder} was trained on other splits than those in {splits_folder}"
    elif generator.eval_skips is not None and len(generator.eval_skips.skip_ML) != len(splits.items_N):
        what = f"{folder} skips interactions of other splits than those in {splits_folder}"
    else:
        return
    raise UserError(
        what,
        "held-out items may have been in its training, so its metrics would mean nothing",
        "run `dvc repro` to train on these splits, or `dvc checkout` to bring back those it was trained on",
    )


def check_reports(reports: Path, generator: Path) -> None:
    """Raises UserError when the metrics in `reports` are those of another model than the one in `generator`.

    Reports that are not there say nothing wrong, so their absence passes.
    """
    if not (reports / RANKS_FILE).exists():
        return
    ranks = Ranks.read(reports / RANKS_FILE)
    if generator.exists() and ranks.origin.model != model_hash(generator):
        raise UserError(
            f"{reports} tells of another model than the one in {generator}",
            "a run was stopped half-way, or files of two runs were mixed",
            "run `dvc repro`, or `dvc checkout` to bring back what belongs together",
        )
    metrics, recall = reports / METRICS_FILE, recall_at(ranks.users["rank"].to_numpy(), 10)
    if metrics.exists() and read_json(metrics).get("recall_at_10") != recall:
        raise UserError(
            f"{metrics} does not belong to {reports / RANKS_FILE}",
            "git and DVC restored different runs",
            "run `git checkout reports` and `dvc checkout`, or `dvc repro`",
        )


def ranks_frame(**columns: np.ndarray) -> pd.DataFrame:
    """The table of COLUMNS with the narrow types of the file."""
    types: dict[str, type] = dict.fromkeys(COLUMNS, np.int32) | {"tie": np.bool_}
    return pd.DataFrame({name: np.asarray(columns[name]).astype(types[name]) for name in COLUMNS})
