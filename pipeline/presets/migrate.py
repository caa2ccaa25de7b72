"""Bring an older params.yaml up to the current keys: add what it lacks, with its default and its comment.

A missing entry is copied, line by line, from presets/demo.yaml to the position that it has there: after the nearest
entry before it that params.yaml has. All else stays: values, comments, order, and unknown keys, which are then refused
as by every command.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml.comments import CommentedMap
from yaml import CollectionNode, MappingNode, Node

from pipeline.presets.document import (
    DEFAULTS,
    PARAMS,
    PRESETS,
    check_document,
    leaves,
    parse_document,
    read_yaml,
    write_document,
)
from pipeline.yaml_files import parse_yaml

INDENT = 2  # of the keys of a section in presets/demo.yaml


@dataclass(frozen=True)
class Added:
    """An `Added` is one key that params.yaml lacked."""

    key: str
    value: Any

    def __str__(self) -> str:
        return f"added {self.key}: {_in_one_line(self.value)}"


def add_missing_keys(*, folder: Path = PRESETS, params: Path = PARAMS) -> list[Added]:
    """Add to params.yaml every section and key that it lacks. Nothing is written where it lacks none.

    Raises:
        UserError: a file is missing or no YAML, or params.yaml holds an unknown key or a bad value. It is then as it
            was.
    """
    document, added = completed(params, folder)
    if added:
        write_document(params, document)
    else:
        check_document(parse_yaml(read_yaml(params), str(params)), params)
    return added


def completed(params: Path, folder: Path) -> tuple[Any, list[Added]]:
    """Return params.yaml as a document with all that it lacks, and what was added, in the order of the defaults.

    Raises:
        UserError: a file is missing or no YAML.
    """
    text = read_yaml(params)
    defaults = _without_head(read_yaml(folder / DEFAULTS))
    mine = parse_document(text, params)
    added: list[Added] = []
    if mine is not None and not isinstance(mine, Mapping):
        check_document(mine, params)  # which says so
    for name, value in parse_yaml(defaults, str(folder / DEFAULTS)).items():
        if mine is None or name not in mine:
            text = _insert(text, defaults, None, name)
            added += [Added(key, inner) for key, inner in leaves({name: value})]
        elif isinstance(value, Mapping) and (isinstance(mine[name], Mapping) or _is_bare(text, name)):
            lacking = {key: inner for key, inner in value.items() if key not in (mine[name] or {})}
            for key in lacking:
                text = _insert(text, defaults, name, key)
            added += [Added(f"{name}.{key}", inner) for key, inner in lacking.items()]
    document = parse_document(text, params) if added else mine
    if isinstance(document, Mapping):
        added += _fill(document, parse_yaml(defaults, str(folder / DEFAULTS)))
    return document, added


def _fill(document: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Added]:
    """Give the mappings inside a section (ingest.columns) the keys that they lack, so that `-S` can set each of them.

    An empty mapping whose default is the empty text becomes that text, which `-S` can replace by a mapping.
    """
    added: list[Added] = []
    for section, values in defaults.items():
        keys: Any = document[section]
        for key, default in values.items() if isinstance(values, Mapping) and isinstance(keys, Mapping) else ():
            value = keys.get(key)
            if default == "" and isinstance(value, Mapping) and not value:
                keys[key] = default
                added.append(Added(f"{section}.{key}", default))
            elif isinstance(default, Mapping) and (isinstance(value, Mapping) or value in ("", None)):
                lacking = {name: inner for name, inner in default.items() if name not in (value or {})}
                if lacking:
                    keys[key] = CommentedMap({**(value or {}), **lacking})
                    added += [Added(f"{section}.{key}.{name}", inner) for name, inner in lacking.items()]
    return added


def _without_head(text: str) -> str:
    """Return the defaults as params.yaml has them: without the comment that begins every preset, and its empty line."""
    return text.partition("\n\n")[2] or text


@dataclass(frozen=True)
class _Entries:
    """`_Entries` says at which lines the entries of a mapping stand in a YAML text: of the file, or of one section."""

    lines: list[str]
    nodes: dict[str, tuple[Node, Node]]  # name -> key and value
    top: int  # line of an entry that comes before all others, its comment included
    brace: int | None  # index of the first character after `{`, of a mapping that is written in braces

    @classmethod
    def of(cls, text: str, section: str | None) -> "_Entries":
        lines = text.splitlines(keepends=True)
        root = yaml.compose(text)
        key, node = (None, root) if section is None else _nodes(root)[section]
        nodes = _nodes(node)
        brace = node.start_mark.index + 1 if isinstance(node, MappingNode) and node.flow_style else None
        top = 0 if key is None else key.end_mark.line + 1
        return cls(lines, nodes, top, brace)

    def end(self, name: str) -> int:
        """Return the line after an entry."""
        return _last_line(self.nodes[name][1]) + 1

    def block(self, name: str) -> list[str]:
        """Return the lines of an entry, with those of its comment."""
        names = list(self.nodes)
        index = names.index(name)
        return self.lines[self.end(names[index - 1]) if index else self.top : self.end(name)]


def _insert(text: str, defaults: str, section: str | None, name: str) -> str:
    """Return `text` with an entry of `defaults` at its position in a section, or in the file itself (None)."""
    source = _Entries.of(defaults, section)
    target = _Entries.of(text, section)
    names = list(source.nodes)
    before = next((other for other in reversed(names[: names.index(name)]) if other in target.nodes), None)
    if target.brace is not None:
        values = parse_yaml(defaults, DEFAULTS)
        entry = f"{name}: {_in_one_line((values if section is None else values[section])[name])}"
        if before:
            index = target.nodes[before][1].end_mark.index
            entry = f", {entry}"
        else:
            index = target.brace
            entry = f"{entry}, " if target.nodes else entry
        return text[:index] + entry + text[index:]
    lines = target.lines
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    start = target.end(before) if before else target.top
    block = source.block(name)
    if section is not None:
        indent = " " * next((key.start_mark.column for key, _ in target.nodes.values()), INDENT)
        block = [indent + line[INDENT:] if line.strip() else line for line in block]
    comment = list(itertools.takewhile(lambda line: line.strip() == "" or line.lstrip().startswith("#"), block))
    if lines[start : start + len(comment)] == comment:  # only the key was taken out
        start += len(comment)
        block = block[len(comment) :]
    lines[start:start] = block
    return "".join(lines)


def _nodes(node: Node | None) -> dict[str, tuple[Node, Node]]:
    return {key.value: (key, value) for key, value in node.value} if isinstance(node, MappingNode) else {}


def _is_bare(text: str, section: str) -> bool:
    """Return True if a section is its name alone, because the lines of all its keys were taken out."""
    return bool(_nodes(yaml.compose(text))[section][1].value == "")


def _last_line(node: Node) -> int:
    """Return the number of the last line of a value.

    The end mark of a block stands behind the comments that follow the block.
    """
    if isinstance(node, CollectionNode) and node.value and not node.flow_style:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.line - (node.end_mark.column == 0 and node.end_mark.line > node.start_mark.line)


def _in_one_line(value: Any) -> str:
    text = yaml.safe_dump({"key": value}, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.strip()[len("{key: ") : -1]
