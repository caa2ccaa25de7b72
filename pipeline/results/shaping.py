"""Tell which parameters of a run shape its model, so that runs of different versions are told apart by these alone."""

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.backbones.config import BackboneConfig
from pipeline.strategies.registry import settings_types
from pipeline.training.config import TrainConfig


def shaping(flat: Mapping[str, Any], strategy: str, beside: Collection[str]) -> dict[str, Any]:
    """Return those of the flat parameters that shape the model of a run.

    Left out are the sections and keys in `beside`, the settings of strategies that `strategy` does not name, and values
    by which a model computes as it did before their key was there (`SAVED_WITHOUT`): a run of an earlier version has
    the same parameters then.
    """
    types = settings_types()
    unused = {*beside, *(types.keys() - set(strategy.split("+")))}
    neutral = {
        f"{section}.{key}": value
        for section, kind in {"backbone": BackboneConfig, "train": TrainConfig, **types}.items()
        for key, value in getattr(kind, "SAVED_WITHOUT", {}).items()
    }
    return {
        key: value
        for key, value in flat.items()
        if not {key, key.partition(".")[0]} & unused and not (key in neutral and neutral[key] == value)
    }
