"""Commands around experiments: presets before a run, comparisons and measurements after it."""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.answers import (
    HistoryOption,
    ModelOption,
    OutputOption,
    answer,
    model_folders,
    typed_entries,
    typed_model,
)
from pipeline.cli.folders import typed_path, typed_runs
from pipeline.printing import json_text, say

if TYPE_CHECKING:
    from pipeline.presets.tuning import TuningSearch

PANEL = "Experiments"
PUBLISHED = Path("models/published")  # ignored by git, and no output of DVC
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def preset(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A file of presets/, without .yaml.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", show_default=False, help="One more value; repeat as needed."),
    ] = None,
) -> None:
    """Write a preset into params.yaml, or list them by kind.

    Comments and order stay. A part sets every key of its kind (data, encoder, quantizer, model, strategy, retriever)
    and no other, so parts combine in any order. A whole sets all kinds but data and encoder; `demo` brings every
    default back. A value that you set by hand in those sections is overwritten too: each change is printed.

    [dim]Examples:[/dim]

      python -m pipeline preset

      python -m pipeline preset amazon-beauty --set ingest.path=DIR

      python -m pipeline preset beauty-fast && python -m pipeline preset skipgr

      python -m pipeline preset tiger --set train.max_windows=1000000
    """
    from pipeline.presets.apply import apply_preset
    from pipeline.presets.kinds import describe, sets

    known = describe()
    if name is None:
        width = max(map(len, known), default=0) + 2
        for kind, presets in groupby(known.values(), key=lambda preset: preset.kind):
            answer(f"{kind or 'of no kind'} ({sets(kind)})")
            for preset in presets:
                answer(f"  {preset.name:{width}}{preset.summary}")
        return
    changes = apply_preset(name, settings or [])
    for change in changes:
        say(f"  {change}")
    say(f"{len(changes)} values changed." if changes else "params.yaml says so already.")
    say("Next: add one of these presets, then dvc repro" if known[name].add else "Next: dvc repro")
    for line in known[name].add:
        say(f"  {line}")


@commands.command(rich_help_panel=PANEL)
def migrate() -> None:
    """Add to params.yaml the keys that a newer version needs, with their defaults.

    Values, comments and order stay. An unknown key is refused, never removed. The defaults are those of
    presets/demo.yaml.

    [dim]Examples:[/dim]

      git pull && python -m pipeline migrate
    """
    from pipeline.presets.migrate import add_missing_keys

    added = add_missing_keys()
    for key in added:
        say(f"  {key}")
    say(f"{len(added)} keys added. Next: dvc repro" if added else "params.yaml has every key: nothing to do.")


@commands.command(rich_help_panel=PANEL)
def tune(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A YAML file of the settings to try (docs/tune.md).")],
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Trials at once; several may share one GPU.")] = 1,
    preset_file: Annotated[
        Path, typer.Option("--preset", metavar="FILE", help="Where the best settings are written as a preset.")
    ] = Path("presets/tuned.yaml"),
) -> None:
    """Try settings on validation, and write the best ones as a preset.

    Each trial is a process that makes Semantic IDs and trains; the first one is params.yaml as it stands. The test is
    not read. A search that was killed goes on where it was, by the same command. Reads data/interactions,
    data/embeddings and data/splits, changes neither params.yaml nor any output of DVC. MLflow has a run for the search
    and one for each trial.

    [dim]Examples:[/dim]

      python -m pipeline tune space.yaml

      python -m pipeline tune space.yaml --jobs 4 --preset presets/mine.yaml
    """
    from pipeline.config import load_params
    from pipeline.errors import UserError
    from pipeline.locks import BusyError, alone
    from pipeline.presets.tuned import may_write, trial_table, write_preset
    from pipeline.presets.tuning import FOLDER, plan, run_search, words_of
    from pipeline.presets.tuning_space import check_keys, read_space

    params = load_params()
    path = typed_path(space)
    written = typed_path(preset_file) if preset_file != Path("presets/tuned.yaml") else preset_file
    may_write(written)
    wanted = read_space(path)
    check_keys(wanted, params, path)
    search = plan(wanted, params)
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        with alone(FOLDER / "search.lock", None):
            run_search(search, jobs)
    except BusyError as busy:
        raise UserError(f"{busy.holder} tunes here", "two searches would share folders", "wait for its end") from None
    finished = search.finished()
    if not finished:
        raise UserError("no trial has a result", "each of them failed, as the lines above say", "mend the space")
    answer(trial_table(search))
    best, result = finished[0]
    write_preset(written, best, result, search, path)
    answer(f"best: dvc exp run {words_of(best.changes)}" if best.changes else f"best: {best.words}")
    answer(f"preset: python -m pipeline preset {written.stem}    ({written})")
    _record_search(search, path.stem, params.track.experiment)


def _record_search(search: "TuningSearch", name: str, experiment: str) -> None:
    """Record the trials in MLflow; a store that is away costs a line, not the search."""
    from pipeline.errors import UserError
    from pipeline.results.tuning_runs import record_search

    trials = [(trial.key, trial.number, trial.changes, result) for trial, result in search.finished()]
    try:
        record_search(experiment, search.key, f"tune {name}", trials)
    except UserError as error:
        say(f"note: {error}", error=True)


@commands.command(rich_help_panel=PANEL)
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            show_default=False,
            help="Experiments, commits, `workspace` or folders with reports; NAME=RUN,RUN puts runs into one arm. "
            "Without any: this commit, its experiments and the workspace.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=100, help="Resamples behind each interval.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object, nothing else.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Tables in Markdown, nothing else.")] = False,
    promote: Annotated[
        bool,
        typer.Option("--promote", help="Serve this RUN, or the workspace, if it is not worse than the champion."),
    ] = False,
    published: Annotated[Path, typer.Option(metavar="DIR", help="With --promote: where servers read.")] = PUBLISHED,
    force: Annotated[bool, typer.Option("--force", help="With --promote: without a comparison.")] = False,
    output: OutputOption = None,
) -> None:
    """Compare finished runs user by user: each strategy with `full` on the same backbone, data and protocol.

    Without runs: the result of this commit, its experiments and the workspace. With runs, the first one is the
    reference. Prints differences with intervals, the smallest difference that could have been seen, the verdicts
    `better`, `not worse`, `worse` and `unclear`, and what each took. Runs that differ in their seed only are one arm;
    seeds are resampled before users. Runs that were evaluated otherwise stand in a table of their own.

    With --promote, one run is compared with the champion, the model that is served now. Where its recall@10 is `better`
    or `not worse`, or where there is no champion, its model gets a version in MLflow's registry (track.model_name) and
    the alias `champion`, and is published in DIR, in one act.

    [dim]Examples:[/dim]

      python -m pipeline compare

      python -m pipeline compare main workspace

      python -m pipeline compare full=yolky-sera,tubal-bean rastp=swept-prof,reedy-daks --markdown --output table.md

      python -m pipeline compare --promote
    """
    if as_json and as_markdown:
        raise typer.BadParameter("give --json or --markdown, not both")
    if promote and (output or as_json or as_markdown):
        raise typer.BadParameter("--promote prints what it does; --output, --json and --markdown go without it")
    if promote:
        _promote(typed_runs(runs or ["workspace"]), typed_path(published), samples, force)
        return
    from pipeline.results import comparison_text as written
    from pipeline.results.compare import compare as compared

    report = compared(typed_runs(runs or []), samples=samples)
    if as_json:
        answer(json_text(written.comparison_json(report), output), output)
    else:
        answer((written.comparison_markdown if as_markdown else written.comparison_text)(report), output)


def _promote(runs: list[str], published: Path, samples: int, force: bool) -> None:
    """Register, crown and publish the model of one run."""
    from pipeline.config import load_params
    from pipeline.errors import UserError
    from pipeline.serving.promote import promote as promoted

    if len(runs) != 1:
        raise UserError(f"--promote got {len(runs)} runs", "one model is served", "name one run, or none: workspace")
    track = load_params().track
    done = promoted(runs[0], track.model_name, track.experiment, published, samples=samples, force=force)
    if done.comparison:
        say(done.comparison, "")
    version = done.published.registered.version if done.published.registered else ""
    say(f"champion: models:/{track.model_name}@champion, version {version}{'' if done.new else ', as before'}")
    say(f"published: {published / 'current'}")


@commands.command(rich_help_panel=PANEL)
def gradients(
    user: Annotated[
        str | None, typer.Option(metavar="ID", help="Raw id: measure on this user's history alone.")
    ] = None,
    history: HistoryOption = None,
    batches: Annotated[int, typer.Option(min=1, help="How many batches are averaged.")] = 20,
    windows: Annotated[int, typer.Option(min=4, help="Training windows of each batch.")] = 256,
    model: ModelOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of both files, in place of reports.")
    ] = None,
) -> None:
    """Show how strongly the trained model would learn from tokens of each entropy (SkipGR's Figure 2).

    Prints the norm of the gradient of the mean loss of each quartile of tokens, over all levels and for each level.
    Reads data/splits and models/generator, writes reports/gradients.csv and reports/gradients.svg.

    [dim]Examples:[/dim]

      python -m pipeline gradients

      python -m pipeline gradients --batches 100 --windows 1024

      python -m pipeline gradients --user u00017
    """
    from pipeline.artifacts import GENERATOR, REPORTS
    from pipeline.evaluate.entropy_gradients import gradients_by_entropy, gradients_of_history

    written = typed_path(output) if output else REPORTS
    if user is None and history is None:
        generator = typed_model(model) if model else GENERATOR
        table = gradients_by_entropy(batches=batches, windows=windows, generator=generator, reports=written)
    else:
        table = gradients_of_history(user=user, history=typed_entries(history), output=written, **model_folders(model))
    answer(table.to_string(index=False, float_format="{:.4f}".format))
