"""Read the options that several commands share, and print what was asked for, or write it into the file of --output."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from pipeline.cli.folders import typed_path
from pipeline.errors import UserError
from pipeline.printing import escape, hide_secrets, say

if TYPE_CHECKING:
    from pipeline.evaluate.typed_history import Typed

HistoryOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID,ID,...",
        show_default=False,
        help="Raw item ids, oldest first; ID@TIME adds the time. Repeat as needed; an id that holds a comma stands in "
        "double quotes or alone.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", show_default=False, help="Write the answer into this file, in UTF-8."
    ),
]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="DIR", show_default=False, help="A copy of a models/generator, in place of it."),
]


def answer(text: str, output: Path | None = None) -> None:
    """Print the text; with `output`, which is a path as it was typed, write it there and print that path."""
    if output is None:
        say(text, answer=True)
        return
    from pipeline.artifacts import write_bytes

    path = typed_path(output)
    if path.is_dir():
        raise UserError(f"{path} is a folder", "--output names the file of the answer", f"give {path / 'answer.txt'}")
    write_bytes(path, (escape(hide_secrets(text)) + "\n").encode())
    say(f"written: {path}")


def typed_model(model: Path) -> Path:
    """Return the folder of --model as it is read from the project's.

    Raises:
        UserError: the folder holds no trained model.
    """
    path = typed_path(model)
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path} holds no trained model, config.json is not there",
            "--model names a copy of models/generator",
            "give the folder that holds config.json, items.parquet and model.safetensors",
        )
    return path


class ModelFolders(TypedDict, total=False):
    """`ModelFolders` says where a model lies, and the reports that must be about it."""

    generator: Path
    reports: Path


def model_folders(model: Path | None) -> ModelFolders:
    """Return the folders of --model; none for the project's. A copy of a model has no reports beside its files."""
    return {"generator": typed_model(model), "reports": typed_path(model)} if model else {}


def typed_entries(history: list[str] | None) -> "list[Typed] | None":
    """Return the texts of all options --history; None if there is none."""
    from pipeline.evaluate.typed_history import Typed

    return [Typed(text) for text in history] if history else None
