"""Declare the section `track` of params.yaml."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """These settings say where runs are recorded."""

    experiment: str  # name of the MLflow experiment
    log_model: bool  # attach models/generator to the run
