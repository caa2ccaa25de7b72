"""Read YAML that may be anything: a folder, another encoding, an alias bomb, an impossible date.

The text is bounded before it is parsed, and the tree is bounded while it is built, so that every answer comes within a
second. A plain value that YAML takes for a number or a date, and that is none, stays the text that was written. So the
reader of the settings names its key.
"""

import stat
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import RESTORE, UserError

MOST_BYTES = 128 * 1024  # params.yaml has about 20 KB
DEEPEST = 20  # levels of lists and mappings in each other
MOST_NODES = 3000  # keys and values, those of an alias counted at each mention

_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, OverflowError)  # of PyYAML, for odd values


def read_text(path: Path, why: str, fix: str = "run from the folder that holds it") -> str:
    """Return the text of a small file.

    Args:
        why: what the file is for, for the message where the file is missing.

    Raises:
        UserError: the file is missing, is no file, cannot be read, is larger than `MOST_BYTES`, or is not UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}", why, f"mend {path}")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is not here", why, fix) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", why, f"mend {path}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES // 1024} KiB", "settings are far smaller", f"mend {path}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8: line {line} has the byte 0x{content[error.start]:02x}",
            "another encoding would read other characters",
            "save the file as UTF-8, then run the same command again",
        ) from None


def parse_yaml(text: str, name: str, fix: str = RESTORE) -> Any:
    """Parse YAML as PyYAML's safe loader does; `name` is the file's, for the message.

    Raises:
        UserError: the text is no YAML, a name stands twice, or the tree is too deep or too large.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise UserError(f"{name} is not valid YAML: {what}{where}", fix=fix) from None
    except (yaml.YAMLError, *_UNREADABLE, RecursionError) as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}", fix=fix) from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, within bounds."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._nodes = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        # PyYAML reads 1,024 characters ahead of a bracket that may be a key, and looks at all open ones each time.
        if self.flow_level >= DEEPEST:
            what = f"more than {DEEPEST} levels"
            raise yaml.scanner.ScannerError(None, None, what, self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        self._nodes += 1
        if self._depth > DEEPEST or self._nodes > MOST_NODES:
            what = f"more than {MOST_NODES:,} values" if self._nodes > MOST_NODES else f"more than {DEEPEST} levels"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, what, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_document(self) -> Any:
        node = super().compose_document()
        _count(node, {})
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except _UNREADABLE:
            if isinstance(node, yaml.ScalarNode):
                return node.value  # 2014-99-99, or a number of 6,000 digits: the settings' reader names the key
            mark = node.start_mark
            raise yaml.constructor.ConstructorError(None, None, f"not readable as {node.tag}", mark) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in names:
                    text = key.value[:60]
                    raise yaml.constructor.ConstructorError(None, None, f"{text!r} stands twice", key.start_mark)
                names.add(key.value)
        return super().construct_mapping(node, deep)


def _count(node: Any, known: dict[int, int]) -> int:
    """Return the number of nodes below a node and itself, each alias counted in full.

    Raises:
        yaml.composer.ComposerError: there are more than `MOST_NODES`, or an alias stands within its anchor.
    """
    if id(node) in known:
        size = known[id(node)]
    else:
        known[id(node)] = MOST_NODES + 1  # until it is known: an alias within its anchor has no end
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        size = 1
        for part in inner:
            size += _count(part, known)
        known[id(node)] = size
    if size > MOST_NODES:
        text = f"more than {MOST_NODES:,} values, with those that aliases repeat"
        raise yaml.composer.ComposerError(None, None, text, node.start_mark)
    return size
