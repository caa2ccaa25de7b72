"""Read params.yaml with its comments, and write it in the form that `dvc exp run -S` writes.

The form is a fixed point of DVC's writer, so that `-S` later changes one line.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.artifacts import write_bytes
from pipeline.config import build_params
from pipeline.errors import UserError
from pipeline.yaml_files import parse_yaml, read_text

PRESETS = Path("presets")
PARAMS = Path("params.yaml")
DEFAULTS = "demo.yaml"  # the file of presets/ that holds params.yaml as it comes: the one source of defaults
UNTOUCHED = ("params.yaml was left as it was", "mend what is named, then run the command again")


def read_yaml(path: Path) -> str:
    """Return the text of a YAML file.

    Raises:
        UserError: the file is missing, is no YAML, or is no text.
    """
    text = read_text(path, "nothing was changed", "run from the project's folder")
    parse_yaml(text, str(path), UNTOUCHED[1])  # within bounds, which the reader of comments does not have
    return text


def parse_document(text: str, path: Path) -> Any:
    """Parse the document with its comments; `path` is for the message.

    Raises:
        UserError: the text is no YAML.
    """
    try:
        return YAML().load(text)
    except (YAMLError, ValueError, LookupError, AttributeError, OverflowError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {said}", "nothing was changed", f"mend {path}") from None


def write_document(path: Path, document: Any) -> None:
    """Check the whole, then write it at once: another process sees the old file or the new one.

    Raises:
        UserError: as `check_document`. The file is then as it was.
    """
    text = dump(document)
    check_document(parse_yaml(text, str(path)), path)
    write_bytes(path, text.encode())


def check_document(values: Any, path: Path) -> None:
    """Check the values of the whole document as every stage would.

    Raises:
        UserError: an unknown or missing key or a bad value.
    """
    try:
        build_params(values, str(path))
    except UserError as error:
        raise UserError(error.what, *UNTOUCHED) from None


def dump(document: Any) -> str:
    """Write as DVC does, with the same settings and line width."""
    writer = YAML()
    writer.default_flow_style = False
    stream = io.StringIO()
    writer.dump(document, stream)
    return stream.getvalue()


def leaves(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield `section.key` and value of each key. A mapping below that depth (ingest.columns) is a value."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value
