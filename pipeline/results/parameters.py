"""Lay out parameters as the page and MLflow show them: one value under each dotted name."""

import json
from typing import Any, Protocol


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
