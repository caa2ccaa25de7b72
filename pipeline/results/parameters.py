"""Parameters as the page and MLflow show them: one value under each dotted name."""

import dataclasses
import json
from typing import Any


def flatten(params: Any) -> dict[str, Any]:
    """`{"train.beam": 10, ...}`: every parameter under its dotted name."""
    flat: dict[str, Any] = {}
    sections = dataclasses.asdict(params)
    strategies = sections.pop("strategies", {})  # in params.yaml they stand beside the others
    for name, value in (sections | strategies).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def value_text(value: Any) -> str:
    """The value as JSON; text stays as it is."""
    return value if isinstance(value, str) else json.dumps(value)
