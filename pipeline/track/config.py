"""What `track:` in params.yaml may say."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Where runs are recorded."""

    experiment: str  # name of the MLflow experiment
    log_model: bool  # attach models/generator to the run
