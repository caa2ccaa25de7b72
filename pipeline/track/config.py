"""What `track:` in params.yaml may say."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackConfig:
    """Where runs are recorded."""

    experiment: str = "sidpipe"  # name of the MLflow experiment
    log_model: bool = True  # attach models/generator to the run
