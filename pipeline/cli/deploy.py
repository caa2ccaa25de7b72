"""Commands that hand a trained model on: a published copy for servers, a folder for the Hugging Face hub."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.answers import answer
from pipeline.cli.folders import typed_path

PANEL = "Serve"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def publish(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Servers read DIR/current, an MLflow model.")],
    rollback: Annotated[bool, typer.Option("--rollback", help="Serve the version before again.")] = False,
) -> None:
    """Publish the trained model where servers read it: whole, in one rename, with the version before kept.

    `dvc repro` empties models/generator for a while; DIR/current is always complete. In a folder that `compare
    --promote` fills, --rollback moves the alias `champion` of MLflow's registry too.

    [dim]Examples:[/dim]

      python -m pipeline publish served

      python -m pipeline publish served --rollback

      mlflow models serve -m served/current --env-manager local --port 8000
    """
    from pipeline.serving.publish import publish as published
    from pipeline.serving.publish import rollback as to_the_version_before

    folder = typed_path(folder)
    if rollback:
        answer(f"{folder / 'current'} serves {to_the_version_before(folder).version} again")
        return
    made, new = published(folder)
    answer(f"{folder / 'current'} serves {made.version}{'' if new else ', as before'}")


@commands.command(rich_help_panel=PANEL)
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    form: Annotated[
        Literal["huggingface"], typer.Option("--format", metavar="huggingface", help="The form of the folder.")
    ] = "huggingface",
) -> None:
    """Write the trained model as a folder that can be uploaded to a hub: safetensors, config.json, items, a model card.

    The card (README.md) says what the data are, how the metrics were measured, with their intervals, and how to load
    the model. Raw ids and titles of the items are part of the model; no user is.

    [dim]Examples:[/dim]

      python -m pipeline export --format huggingface out/my-model
    """
    from pipeline.config import load_params
    from pipeline.serving.huggingface import export_model

    del form  # there is one
    folder = typed_path(folder)
    export_model(folder, load_params().plain())
    answer(f"{folder}: the model and its card, README.md")
