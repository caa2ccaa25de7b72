"""Commands around experiments: recipes before a run, comparisons and measurements after it."""

import json
from typing import Annotated

import typer

PANEL = "Experiments"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def preset(
    name: Annotated[str | None, typer.Argument(help="A file of presets/, without .yaml.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", show_default=False, help="One more value; repeat as needed."),
    ] = None,
) -> None:
    """Write a published recipe into params.yaml, or list them.

    Comments and order stay. Presets combine: each writes only the keys that it names, and `demo` brings every default
    back.

    [dim]Examples:[/dim]

      python -m pipeline preset

      python -m pipeline preset amazon-beauty --set ingest.path=DIR

      python -m pipeline preset tiger --set train.max_windows=1000000
    """
    from pipeline.presets import apply_preset, describe

    if name is None:
        for known, description in describe().items():
            print(f"{known:18}{description}")
        return
    changes = apply_preset(name, settings or [])
    for change in changes:
        print(f"  {change}")
    print(f"{len(changes)} values changed. Next: dvc repro" if changes else "params.yaml says so already.")


@commands.command(rich_help_panel=PANEL)
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            show_default=False,
            help="Experiments, commits, `workspace` or folders with reports; NAME=RUN,RUN puts runs into one arm. "
            "None: the experiments of this commit and the workspace.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=100, help="Resamples behind each interval.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
) -> None:
    """Set finished runs against the first one, user by user.

    Differences with intervals, the smallest that could have been seen, and the words `better` and `not worse`.
    Runs that differ in their seed only are one arm; seeds are resampled before users.

    [dim]Examples:[/dim]

      python -m pipeline compare

      python -m pipeline compare main workspace

      python -m pipeline compare full=yolky-sera,tubal-bean rastp=swept-prof,reedy-daks
    """
    from pipeline.results.compare import compare as differences
    from pipeline.results.compare import comparison_rows, comparison_text

    comparisons = differences(runs or [], samples=samples)
    print(json.dumps(comparison_rows(comparisons), indent=2) if as_json else comparison_text(comparisons))


@commands.command(rich_help_panel=PANEL)
def gradients(
    batches: Annotated[int, typer.Option(min=1, help="How many batches are averaged.")] = 20,
    windows: Annotated[int, typer.Option(min=4, help="Training windows of each.")] = 256,
) -> None:
    """Show how strongly the trained model would learn from tokens of each entropy (SkipGR's Figure 2).

    Norm of the gradient of the mean loss of each quartile of tokens, over all levels and of each level. Reads
    data/splits and models/generator, writes reports/gradients.csv and reports/gradients.svg.

    [dim]Examples:[/dim]

      python -m pipeline gradients

      python -m pipeline gradients --batches 100 --windows 1024
    """
    from pipeline.evaluate.entropy_gradients import gradients_by_entropy

    print(gradients_by_entropy(batches=batches, windows=windows).to_string(index=False, float_format="{:.4f}".format))
