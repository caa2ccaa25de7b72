"""Name the stage that trains and its keys of params.yaml, so that lines and errors of the engine are true of it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StageWords:
    """`StageWords` are how the engine speaks of the stage for which it trains.

    stage: the command, which begins every line that is printed. keys: a field of `TrainConfig` or `BackboneConfig` ->
    the key of params.yaml that sets it; None: the keys of `train:` and `backbone:`, which have the fields' names.
    """

    stage: str = "train"
    keys: Mapping[str, str] | None = None

    def key(self, field: str, section: str = "train") -> str:
        """Return the key of params.yaml that sets a field; empty where no key does."""
        return f"{section}.{field}" if self.keys is None else self.keys.get(field, "")


TRAIN = StageWords()
