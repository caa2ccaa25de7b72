"""Lay out parameters as the page and MLflow show them: one value under each dotted name."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

from pipeline.backbones.config import BackboneConfig
from pipeline.strategies.registry import settings_types
from pipeline.training.config import TrainConfig


class Plain(Protocol):
    """`Plain` is anything with parameters that can be laid out as params.yaml is."""

    def plain(self) -> dict[str, Any]: ...


def flatten(params: Plain) -> dict[str, Any]:
    """Return every parameter under its dotted name, in the order of params.yaml: `{"train.beam": 10, ...}`."""
    flat: dict[str, Any] = {}
    for name, value in params.plain().items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def value_text(value: Any) -> str:
    """Return the value as JSON; text is returned unchanged."""
    return value if isinstance(value, str) else json.dumps(value)


def shaping(flat: Mapping[str, Any], strategy: str) -> dict[str, Any]:
    """Return those of the flat parameters that shape the model of a run.

    Left out are the settings of strategies that `strategy` does not name, and values by which a model computes as it
    did before their key was there (`SAVED_WITHOUT`): a run of an earlier version has the same parameters then.
    """
    types = settings_types()
    unused = types.keys() - set(strategy.split("+"))
    neutral = {
        f"{section}.{key}": value
        for section, kind in {"backbone": BackboneConfig, "train": TrainConfig, **types}.items()
        for key, value in getattr(kind, "SAVED_WITHOUT", {}).items()
    }
    return {
        key: value
        for key, value in flat.items()
        if key.partition(".")[0] not in unused and not (key in neutral and neutral[key] == value)
    }
