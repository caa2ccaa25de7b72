"""Parameters as the page and MLflow show them: one value under each dotted name."""

import dataclasses
import json
from typing import Any


def flatten(params: Any) -> dict[str, Any]:
    """`{"train.beam": 10, ...}`: every parameter under its dotted name, in the order of params.yaml."""
    sections: dict[str, Any] = {}
    for name, value in dataclasses.asdict(params).items():
        # The sections of strategies stand beside the others in params.yaml.
        sections |= value if name == "strategies" else {name: value}
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def value_text(value: Any) -> str:
    """The value as JSON; text stays as it is."""
    return value if isinstance(value, str) else json.dumps(value)
