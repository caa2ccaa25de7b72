"""The settings that a benchmark does not name: the defaults, but for those by which its figures were published."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.config import Params, load_params

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Section = TypeVar("Section", bound="DataclassInstance")  # of params.yaml

DEFAULTS = Path(__file__).parents[1] / "presets/demo.yaml"
# The figures in docs/ rest on these, whatever becomes of the defaults.
MEASURED_WITH: dict[str, dict[str, Any]] = {
    "BackboneConfig": {"dropout": 0.1, "separators": True, "recency_items": 0},
    "TrainConfig": {
        "max_windows": 250_000,
        "batch_tokens": 8192,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "schedule": "constant",
        "validate_every": 200,
    },
}


@cache
def default_params() -> Params:
    """presets/demo.yaml as it is."""
    return load_params(DEFAULTS)


def some(kind: type[Section], **values: Any) -> Section:
    """A section with some keys replaced: `some(TrainConfig, optimizer="adam")`."""
    params = default_params()
    sections = (*vars(params).values(), *params.strategies.values())
    section = next(section for section in sections if type(section) is kind)
    return replace(section, **{**MEASURED_WITH.get(kind.__name__, {}), **values})
