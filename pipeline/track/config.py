"""Declare the section `track` of params.yaml."""

from dataclasses import dataclass
from typing import Annotated

from pipeline.knobs import Text


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """These settings say where runs are recorded."""

    experiment: Annotated[str, Text(1, 250)]  # name of the MLflow experiment
    log_model: bool  # attach models/generator to the run

    def __post_init__(self) -> None:
        if not self.experiment.strip():
            raise ValueError("track.experiment is blank, expected a name")
