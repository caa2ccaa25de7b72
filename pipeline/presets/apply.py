"""Write presets/NAME.yaml onto params.yaml, whose comments and order stay.

The result is checked as a whole before a byte is written, and written in the form that `dvc exp run -S` writes, so that
`-S` later changes one line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from pipeline.errors import UserError, nearest
from pipeline.presets.document import PARAMS, PRESETS, UNTOUCHED, leaves, parse_document, read_yaml, write_document
from pipeline.presets.kinds import describe
from pipeline.presets.migrate import Added, completed

LONGEST = 4096  # characters of a value that is read as YAML


@dataclass(frozen=True)
class Change:
    """A `Change` is one value of params.yaml that becomes another."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


def apply_preset(
    name: str, settings: list[str], *, folder: Path = PRESETS, params: Path = PARAMS
) -> list[Added | Change]:
    """Write the preset, then each `key=value` of `settings`, into params.yaml; keys that it lacks are added first.

    Raises:
        UserError: an unknown preset, key or value. params.yaml is then as it was.
    """
    known = describe(folder)
    if name not in known:
        raise UserError(
            f"preset '{name}' is not known, {nearest(name, known)}",
            f"presets are the files of {folder}/",
            "run `python -m pipeline preset` to list them",
        )
    document, added = completed(params, folder)
    preset = folder / f"{name}.yaml"
    written = dict(leaves(parse_document(read_yaml(preset), preset) or {}))
    values = {key: _added(None, value) for key, value in written.items()}
    for key, value in map(_parse_setting, settings):  # the later one wins
        values[key] = _added(values.get(key), value)
    changes = [_assign(document, key, value, add=key not in written) for key, value in values.items()]
    write_document(params, document)
    return [*added, *(change for change in changes if change)]


def _parse_setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(
            f"--set {text} has no '='", fix="write --set key=value, such as --set train.max_windows=1000000"
        )
    try:
        parsed = YAML(typ="safe").load(value) if value and len(value) <= LONGEST else value
    except (YAMLError, ValueError, LookupError, AttributeError, OverflowError, RecursionError):
        parsed = value  # a path such as *.csv is no YAML
    return key.strip(), str(parsed) if isinstance(parsed, date) else parsed


def _assign(document: Any, key: str, value: Any, *, add: bool = False) -> Change | None:
    """Set one value in place; the check of the whole reports the keys that do not exist.

    Args:
        key: NAME, SECTION.NAME, or SECTION.NAME.ENTRY for one entry of a mapping.
        add: add the entries of a mapping to those that are there, as `dvc exp run -S` does.
    """
    *sections, leaf = key.split(".", 2)
    target = document
    for depth, section in enumerate(sections):
        if depth and section in target and target[section] in ("", None):
            target[section] = CommentedMap()  # ingest.minimum: ''
        if not isinstance(target.get(section), Mapping):
            raise UserError(f"unknown key '{key}': {nearest(section, _sections(target) or target)}", *UNTOUCHED)
        target = target[section]
    before = target.get(leaf)
    target[leaf] = value = _added(before, value) if add and sections else value
    return Change(key, before, value) if before != value else None


def _added(before: Any, value: Any) -> Any:
    """Return the value, a mapping with the entries of the one before it, as `dvc exp run -S` writes them.

    A list leaves the comment behind that stands beside it in the preset.
    """
    if isinstance(value, list):
        return list(value)
    if not isinstance(value, Mapping):
        return value
    return CommentedMap({**before, **value} if isinstance(before, Mapping) else value)


def _sections(document: Any) -> list[str]:
    return [name for name, value in document.items() if isinstance(value, Mapping)]
