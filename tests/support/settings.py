"""Settings for tests: the defaults of presets/demo.yaml, but for the values that the tests were written with.

No dataclass has defaults, so a test that needs some settings, and names few, takes the rest from here.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from pipeline.config import Params, build_params

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Section = TypeVar("Section", bound="DataclassInstance")  # of params.yaml

DEFAULTS = Path(__file__).parents[2] / "presets/demo.yaml"
# Numbers in the tests rest on these, whatever becomes of the defaults.
FOR_TESTS: dict[str, dict[str, Any]] = {
    "quantize": {"codes": 256},
    "backbone": {"dropout": 0.1, "separators": True, "recency_items": 0},
    "evaluate": {"filter_seen": False},
    "train": {
        "max_windows": 250_000,
        "batch_tokens": 8192,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "schedule": "constant",
        "validate_every": 200,
    },
}


@cache
def _defaults() -> dict[str, Any]:
    defaults: dict[str, Any] = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
    return defaults


@cache
def _params() -> Params:
    return read_params()


def raw_params(changes: Any = None) -> dict[str, Any]:
    """params.yaml as a mapping, with the sections and keys of `changes` in it, be they known or not."""
    raw = deepcopy(_defaults())
    for section in (FOR_TESTS, changes or {}):
        for name, value in section.items():
            both = isinstance(value, Mapping) and isinstance(raw.get(name), Mapping)
            raw[name] = {**raw[name], **value} if both else value
    return raw


def read_params(changes: Any = None) -> Params:
    """`raw_params` as every command reads it."""
    return build_params(raw_params(changes))


def some_params(**fields: Any) -> Params:
    """Settings with some fields replaced: `some_params(seed=1, quantize=some(QuantizeConfig, codes=8))`."""
    return replace(_params(), **fields)


def some(kind: type[Section], **values: Any) -> Section:
    """A section with some keys replaced: `some(TrainConfig, ema=0.9)`."""
    params = _params()
    sections = (*vars(params).values(), *params.strategies.values())
    return replace(next(section for section in sections if type(section) is kind), **values)
