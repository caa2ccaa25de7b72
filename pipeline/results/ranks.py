"""Write and read reports/ranks.parquet: one row per test user, and in the file's schema what the ranks were made from.

Numbers alone cannot say which model they belong to, so the file carries a content hash of the model. Whatever shows or
compares results checks the hash here: DVC removes and restores files one by one, and a stopped run leaves old metrics
beside a new model.

Shape legend: N and M interactions of the splits, flat (N in data/splits), L levels.
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.artifacts import Splits, fingerprint, read_json, write_parquet
from pipeline.errors import UserError
from pipeline.manifest import belongs
from pipeline.metrics import recall_at
from pipeline.results.origin import KEY
from pipeline.results.origin import Origin as Origin
from pipeline.results.predictions import Predictions

if TYPE_CHECKING:
    from pipeline.generator import Generator

RANKS_FILE = "ranks.parquet"
METRICS_FILE = "metrics.json"
DETAILS_FILE = "details.json"
# user_id, item_id (the target), rank, bucket_rank (0: not found), history_length, target_popularity (its training
# interactions), tie (an earlier interaction of the user has the same timestamp), popularity_rank, cooccurrence_rank,
# directed_rank, other_rank (the model's by the other rule for seen items than `filter_seen`)
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
    "directed_rank",
    "other_rank",
)
# Columns of other systems, by the rule for seen items of `rank` and of `other_rank`: the dense retriever where there
# was one; the fused views, and by the first rule their exact form; the generator where `rank` is of another system
OPTIONAL = (
    "dense_rank",
    "dense_other_rank",
    "fused_rank",
    "fused_other_rank",
    "exact_rank",
    "generator_rank",
    "generator_other_rank",
)


@dataclass(frozen=True)
class Ranks:
    """Ranks are the file's content: COLUMNS, and those of OPTIONAL that were measured; rows sorted by user_id.

    known_targets: what `targets` returns where the table has no ids (compact_ranks.py); empty where it has them.
    """

    users: pd.DataFrame
    origin: Origin
    known_targets: str = ""

    @property
    def targets(self) -> str:
        """Return a hash of the users and their targets: ranks are comparable user by user where it is equal."""
        if self.known_targets:
            return self.known_targets
        return fingerprint(self.users[["user_id", "item_id"]].to_numpy(np.int64).tobytes().hex())

    def write(self, path: Path) -> None:
        write_parquet(path, self.users[_columns(self.users)], {KEY: json.dumps(asdict(self.origin))})

    @classmethod
    def read(cls, path: Path) -> "Ranks":
        """Read the file. Raises UserError when it is missing, damaged, or not written by evaluate."""
        if not path.exists():
            raise UserError(
                f"{path} is not here", "evaluate writes it", "run `dvc repro`, or `dvc checkout` if it was made before"
            )
        return cls.from_bytes(path.read_bytes(), str(path))

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> "Ranks":
        """Read the file's bytes, called `name` in errors. Raises UserError when evaluate did not write them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(io.BytesIO(content))
            if Predictions.are_in(table):
                raise no_ranks(name)
            origin = Origin(**json.loads((table.schema.metadata or {})[KEY.encode()]))
            users = table.to_pandas()
            return cls(users[_columns(users)], origin)
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{name} cannot be read as the ranks of an evaluation: {error}",
                "it is damaged, or another version or program wrote it",
                "run `dvc repro` to evaluate again",
            ) from None


def no_ranks(name: str) -> UserError:
    """Return the error of what needs ranks of items where a model predicts actions."""
    return UserError(
        f"{name} holds predicted actions of exposures, and no ranks of items",
        "the model was trained by train.task ranking, which ranks no items",
        "set train.task=retrieval and run `dvc repro`",
    )


def read_tested(content: bytes, name: str) -> Ranks | Predictions:
    """Read the bytes of ranks.parquet, called `name` in errors, whichever task was tested.

    Raises:
        UserError: evaluate did not write them.
    """
    return Predictions.from_bytes(content, name) or Ranks.from_bytes(content, name)


def read_evaluation(reports: Path) -> Ranks | Predictions:
    """Read ranks.parquet of a folder of reports. Raises UserError as `Ranks.read`."""
    path = reports / RANKS_FILE
    return read_tested(path.read_bytes(), str(path)) if path.exists() else Ranks.read(path)


def _columns(users: pd.DataFrame) -> list[str]:
    return [*COLUMNS, *(name for name in OPTIONAL if name in users)]


def model_hash(generator: Path) -> str:
    """Return the content hash of models/generator, wherever the folder lies."""
    return fingerprint(*sorted(path for path in generator.iterdir() if path.is_file() and belongs(path)))


def origin_of(  # noqa: PLR0913 - all but three by keyword
    generator: Path,
    splits: Path,
    config: dict[str, Any],
    *,
    sections: Iterable[str],
    protocol: str,
    beam: int,
    decoding: str,
    filter_seen: bool,
    ranking: str = "generator",
    views: str = "",
) -> Origin:
    """Describe the ranks that the model in `generator`, whose config.json is `config`, gives on `splits`.

    Args:
        sections: keys of `config` with the settings of strategies.
        protocol: see `split_words`.
    """
    varies = ("seed", "fingerprints", "widths")  # from seed to seed, the widest collision group differs too
    recipe = {key: value for key, value in config.items() if key not in varies}
    strategies = ("strategy", *sections)
    return Origin(
        model=model_hash(generator),
        splits=fingerprint(splits),
        protocol=protocol,
        dataset=config["dataset"],
        backbone=config["backbone"]["name"],
        base=fingerprint({key: value for key, value in recipe.items() if key not in strategies}),
        strategy=config["strategy"],
        seed=config["seed"],
        recipe=fingerprint(recipe),
        beam=beam,
        decoding=decoding,
        filter_seen=filter_seen,
        ranking=ranking,
        views=views,
    )


def split_words(summary: Mapping[str, Any]) -> str:
    """Return how the log was split, from splits.json: `leave one out, ties source`."""
    days = "".join(f" {key.replace('_', ' ')} {summary[key]}" for key in ("valid_from", "test_from") if key in summary)
    return f"{summary.get('protocol', 'unknown split').replace('_', ' ')}{days}, ties {summary.get('ties', 'unknown')}"


def check_fit(generator: "Generator", folder: Path, splits: Splits, splits_folder: Path) -> None:
    """Check that the model was trained on these very splits. Raises UserError where it was not."""
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
    """Check that the metrics in `reports` are those of the model in `generator`. Raises UserError where they are not.

    Missing reports are no error, since they say nothing wrong.
    """
    if not (reports / RANKS_FILE).exists():
        return
    tested = read_evaluation(reports)
    if generator.exists() and tested.origin.model != model_hash(generator):
        raise UserError(
            f"{reports} describes another model than the one in {generator}",
            "a run was stopped half-way, or files of two runs were mixed",
            "run `dvc repro`, or `dvc checkout` to bring back what belongs together",
        )
    metrics = reports / METRICS_FILE
    name, value = "recall_at_10", None
    if isinstance(tested, Predictions):
        name, value = "auc", tested.auc
    else:
        value = recall_at(tested.users["rank"].to_numpy(), 10)
    if metrics.exists() and read_json(metrics).get(name) != value:
        raise UserError(
            f"{metrics} does not belong to {reports / RANKS_FILE}",
            "git and DVC restored different runs",
            "run `git checkout reports` and `dvc checkout`, or `dvc repro`",
        )


def drops_seen(reports: Path) -> bool:
    """Return whether seen items left the ranking in the evaluation; False where `reports` has none."""
    return (reports / RANKS_FILE).exists() and read_evaluation(reports).origin.filter_seen


def answers_by(reports: Path) -> str:
    """Return the ranking of the evaluation, by which the model answers; `generator` where `reports` has none."""
    return read_evaluation(reports).origin.ranking if (reports / RANKS_FILE).exists() else "generator"


def ranks_frame(**columns: np.ndarray) -> pd.DataFrame:
    """Return the table of the file with its narrow types: int32, bool for `tie`. OPTIONAL columns may be missing."""
    names = [*COLUMNS, *(name for name in OPTIONAL if name in columns)]
    types: dict[str, type] = dict.fromkeys(names, np.int32) | {"tie": np.bool_}
    return pd.DataFrame({name: np.asarray(columns[name]).astype(types[name]) for name in names})
