"""Declare the section `track` of params.yaml."""

from dataclasses import dataclass
from typing import Annotated

from pipeline.knobs import Text


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """These settings say where runs are recorded."""

    experiment: Annotated[str, Text(1, 250)]  # name of the MLflow experiment
    log_model: bool  # attach models/generator to the run, as a model that MLflow serves
    model_name: Annotated[str, Text(1, 200)]  # of the registered model that `compare --promote` makes
    dataset_name: Annotated[str, Text(0, 100)]  # name of the data in the table of runs; empty: `dataset`, or the folder
    live: bool  # show curves in MLflow while training goes on
    user_ids: bool  # attach the ranks of single users

    def __post_init__(self) -> None:
        if not self.experiment.strip():
            raise ValueError("track.experiment is blank, expected a name")
        if not self.model_name.strip() or set(self.model_name) & set("/:.%\"'"):
            raise ValueError("track.model_name must be a name without / : . % and quotes, as in MLflow's registry")
