"""The code of the MLflow model: MLflow copies this file, runs it when the model is loaded, and pickles nothing.

The package itself is copied beside it (`code/`), so that the model loads outside the project.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline.errors import UserError
from pipeline.serving.answers import Answer, Recommender, Request


class RecommendationModel(PythonModel):
    """A `RecommendationModel` answers each row: `history`, and where given `user` and `times`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model once; MLflow calls this before the first request."""
        self.recommender = Recommender(Path(context.artifacts["generator"]), Path(context.artifacts["facts"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return a row per input row: user, items, titles, scores, unknown, source (see `Answer`).

        Raises:
            MlflowException: a request cannot be read; a server answers with code 400 and the reason.
        """
        del context
        given = params or {}
        rows = model_input.to_dict("records")
        try:
            requests = [Request(_listed(row.get("history"), "history"), _times(row.get("times"))) for row in rows]
            answers = self.recommender.answer(
                requests, k=int(given.get("k", 10)), filter_seen=bool(given.get("filter_seen", False))
            )
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error).replace("\n", "; ")) from None
        # The name comes back with its answer; the model knows no users.
        users = [None if _missing(row.get("user")) else row["user"] for row in rows]
        columns = {name: [getattr(answer, name) for answer in answers] for name in Answer.__dataclass_fields__}
        return pd.DataFrame({"user": pd.Series(users, dtype=object), **columns})


def _listed(value: Any, name: str) -> list[Any]:
    """Return a cell that must hold a list; a missing one is an empty list."""
    if _missing(value):
        return []
    if not isinstance(value, list | tuple | np.ndarray):
        raise UserError(
            f"{name} is no list", "a row of a request holds one history", f'write {{"{name}": ["ID", "ID"]}}'
        )
    return list(value)


def _times(value: Any) -> list[Any] | None:
    return None if _missing(value) else _listed(value, "times")


def _missing(value: Any) -> bool:
    """Tell whether a cell is empty: None, or the NaN that pandas puts where a row has no such column."""
    return value is None or (isinstance(value, float) and value != value)


set_model(RecommendationModel())
