"""Write and read reports/ranks.parquet of a model that predicts actions: one row per test exposure.

The columns are user_id, item_id, earlier (the user's earlier exposures), item_exposures (those of the item in the
training part), and for each label `answer_KEY` (bool), `chance_KEY` (float32, of the model) and `means_KEY` (float32,
of the regression on means). Rows are sorted by user and time.

Shape legend: X exposures, U users, M figures.
"""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.artifacts import fingerprint, write_parquet
from pipeline.errors import UserError
from pipeline.exposure_metrics import measure, user_values
from pipeline.results.origin import KEY, Origin

if TYPE_CHECKING:
    import pyarrow as pa

LABELS = "sidpipe_labels"  # key of the labels' names in the schema's metadata
FIGURES = ("auc", "gauc", "wgauc", "log_loss", "calibration", "calibration_error")
BY_USER = ("auc", "gauc", "wgauc")  # those with an interval, that models are compared by
MODEL, MEANS = "chance", "means"  # what stands before a label's key in the columns of the two systems


@dataclass(frozen=True)
class Predictions:
    """Predictions are the file's content. labels: key of each label (`actions.label_keys`) -> its name."""

    exposures: pd.DataFrame
    origin: Origin
    labels: dict[str, str]

    @property
    def users(self) -> int:
        """Return how many users the exposures have."""
        return int(self.exposures["user_id"].nunique())

    @property
    def targets(self) -> str:
        """Return a hash of the exposures and their answers: predictions are comparable where it is equal."""
        rows = self.exposures[["user_id", "item_id", "earlier"]].to_numpy(np.int64)
        answers = self.exposures[[f"answer_{key}" for key in self.labels]].to_numpy(bool)
        return fingerprint(rows.tobytes().hex(), answers.tobytes().hex(), list(self.labels))

    @cached_property
    def auc(self) -> float | None:
        """Return the mean of the AUCs of the labels that have one."""
        return self.figures(MODEL).get("auc")

    def figures(self, system: str, rows: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Return FIGURES of each label as `auc_KEY`, and their means over the labels that have them as `auc`.

        Args:
            system: MODEL or MEANS.
            rows: of the exposures.
        """
        part = self.exposures[rows]
        users_X = part["user_id"].to_numpy()
        told = {
            key: measure(
                users_X, part[f"answer_{key}"].to_numpy(), part[f"{system}_{key}"].to_numpy().astype(np.float64)
            )
            for key in self.labels
        }
        means = {
            name: float(np.mean([found[name] for found in told.values() if name in found]))
            for name in FIGURES
            if any(name in found for found in told.values())
        }
        return means | {
            f"{name}_{key}": found[name] for key, found in told.items() for name in FIGURES if name in found
        }

    def values(self, system: str) -> dict[str, np.ndarray]:
        """Return float64 [U] for each of BY_USER that `figures` has: values with that mean (`user_values`)."""
        users_X = self.exposures["user_id"].to_numpy()
        told: dict[str, list[np.ndarray]] = {}
        named = {}
        for key in self.labels:
            chances_X = self.exposures[f"{system}_{key}"].to_numpy().astype(np.float64)
            values = user_values(users_X, self.exposures[f"answer_{key}"].to_numpy(), chances_X)
            for name in BY_USER:
                if name in values:
                    told.setdefault(name, []).append(values[name])
                    named[f"{name}_{key}"] = values[name]
        return {name: np.mean(found, axis=0) for name, found in told.items()} | named

    def write(self, path: Path) -> None:
        about = {KEY: json.dumps(asdict(self.origin)), LABELS: json.dumps(self.labels)}
        write_parquet(path, self.exposures[columns(self.labels)], about)

    @staticmethod
    def are_in(table: "pa.Table") -> bool:
        """Tell whether a table has predictions, by its schema."""
        return LABELS.encode() in (table.schema.metadata or {})

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> "Predictions | None":
        """Read the file's bytes, called `name` in errors; None where they are no predictions.

        Raises:
            UserError: the file is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(io.BytesIO(content))
            if not cls.are_in(table):
                return None
            labels = dict(json.loads(table.schema.metadata[LABELS.encode()]))
            origin = Origin(**json.loads(table.schema.metadata[KEY.encode()]))
            return cls(table.to_pandas()[columns(labels)], origin, labels)
        except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{name} cannot be read as the result of an evaluation: {error}",
                "it is damaged, or another version or program wrote it",
                "run `dvc repro` to evaluate again",
            ) from None


def columns(labels: Iterable[str]) -> list[str]:
    """Return the columns of the file for these keys of labels."""
    shared: Sequence[str] = ("user_id", "item_id", "earlier", "item_exposures")
    return [*shared, *(f"{kind}_{key}" for key in labels for kind in ("answer", MODEL, MEANS))]
