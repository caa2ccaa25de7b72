"""Published recipes: presets/NAME.yaml written onto params.yaml, whose comments and order stay.

The result is checked as a whole before a byte is written, and written in the form that `dvc exp run -S` writes, so that
`-S` later changes one line.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.artifacts import write_bytes
from pipeline.config import build_params
from pipeline.errors import UserError, nearest

PRESETS, PARAMS = Path("presets"), Path("params.yaml")
UNTOUCHED = ("params.yaml was left as it was", "run the command again with the right key and value")


@dataclass(frozen=True)
class Change:
    """One value of params.yaml that becomes another."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


def describe(folder: Path = PRESETS) -> dict[str, str]:
    """Name -> first comment line of each preset, by name."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)
    }


def apply_preset(name: str, settings: list[str], *, folder: Path = PRESETS, params: Path = PARAMS) -> list[Change]:
    """Write the preset, then each `key=value` of `settings`, into params.yaml.

    Raises:
        UserError: an unknown preset, key or value. params.yaml is then as it was.
    """
    known = describe(folder)
    if name not in known:
        raise UserError(
            f"preset '{name}' is not known, {nearest(name, known)}",
            f"presets are the files of {folder}/",
            "run `python -m pipeline preset` for what each of them is",
        )
    document = _load(params)
    values = dict([*_leaves(_load(folder / f"{name}.yaml")), *map(_parse_setting, settings)])  # the later one wins
    changes = [change for key, value in values.items() if (change := _assign(document, key, value))]
    text = _dump(document)
    _check(text)
    write_bytes(params, text.encode())
    return changes


def _load(path: Path) -> Any:
    try:
        return YAML().load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not here", "presets are written onto it", "run from the project's folder") from None
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}", "nothing was changed", f"mend {path}") from None


def _dump(document: Any) -> str:
    """The same writer and settings as DVC's, its line width included."""
    writer = YAML()
    writer.default_flow_style = False
    stream = io.StringIO()
    writer.dump(document, stream)
    return stream.getvalue()


def _leaves(document: Any) -> Iterator[tuple[str, Any]]:
    """`section.key`, value. A mapping below that depth (ingest.columns) is a value."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _parse_setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: no '='", fix="write --set key=value, such as --set train.max_windows=1000000")
    try:
        parsed = YAML(typ="safe").load(value) if value else ""
    except YAMLError:
        parsed = value  # a path such as *.csv is no YAML
    return key.strip(), str(parsed) if isinstance(parsed, date) else parsed


def _assign(document: Any, key: str, value: Any) -> Change | None:
    """Set one leaf in place; the check of the whole names the keys that do not exist."""
    *sections, leaf = key.split(".", 1)
    target = document
    for section in sections:
        if not isinstance(document.get(section), Mapping):
            raise UserError(f"unknown key '{key}': {nearest(section, _sections(document))}", *UNTOUCHED)
        target = document[section]
    before = target.get(leaf)
    target[leaf] = value
    return Change(key, before, value) if before != value else None


def _sections(document: Any) -> list[str]:
    return [name for name, value in document.items() if isinstance(value, Mapping)]


def _check(text: str) -> None:
    try:
        build_params(yaml.safe_load(text))
    except UserError as error:
        raise UserError(error.what, *UNTOUCHED) from None
