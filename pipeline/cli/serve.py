"""Commands that ask a trained model for items, explain its view of a history, or look up an item's Semantic ID."""

from pathlib import Path
from typing import Annotated, Any

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
from pipeline.cli.folders import typed_path
from pipeline.printing import json_text, shown

PANEL = "Serve"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def recommend(  # noqa: PLR0913 - the command's options
    user: Annotated[
        str | None, typer.Option(metavar="ID", help="Raw id; the history is all that the log has of this user.")
    ] = None,
    history: HistoryOption = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items are printed.")] = 10,
    filter_seen: Annotated[
        bool | None,
        typer.Option(
            "--filter-seen/--with-seen",
            show_default=False,
            help="Leave out items of the history, or leave them in. Neither: as in the evaluation of this model.",
        ),
    ] = None,
    model: ModelOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
    everybody: Annotated[bool, typer.Option("--all", help="All users of the log, into the file of --output.")] = False,
    users: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --all: only these users, one raw id per line.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="With --all: the Parquet file.")
    ] = None,
    beam: Annotated[
        int | None, typer.Option(min=1, help="With --all: width of the search; the larger of -k and 20 by default.")
    ] = None,
) -> None:
    """Ask the trained model for the next items.

    Prints raw id, score (log-probability of the Semantic ID) and title. The model sees all items of --history; of a
    --user it sees what it sees in evaluation (skipgr.at_eval). An item of --history may have its time behind an @, in
    any form that a log may have; a model that reads times (hstu) takes equal steps where there is none. Where items of
    the history are left out and it has every item, the answer says that no item is left.

    With --all, one Parquet file gets a row per user and rank: user, rank, item, score. A run that was stopped goes on
    where it was when the same command is given again.

    [dim]Examples:[/dim]

      python -m pipeline recommend --user u00017 -k 5

      python -m pipeline recommend --history v00012,v00007,v00090

      python -m pipeline recommend --history '"tea, green"' --history v00012

      python -m pipeline recommend --history v00012@2024-09-05T12:32:27Z,v00007@2024-09-06T08:00:00Z

      python -m pipeline recommend --all --output recs.parquet -k 20 --filter-seen
    """
    if everybody or users or beam or output:
        alone = everybody and not (user or history or as_json)
        _recommend_all(output, users, k, filter_seen, beam, model, alone=alone)
        return
    from pipeline.evaluate.recommend import recommend as best

    items = best(user=user, history=typed_entries(history), k=k, filter_seen=filter_seen, **model_folders(model))
    if as_json:
        answer(json_text([vars(item) for item in items]))
        return
    if not items:
        answer("no item is left: every item is in the history; --with-seen ranks these too")
    width = max((len(shown(item.item)) for item in items), default=0)
    for rank, item in enumerate(items, start=1):
        answer(f"{rank:>3}  {shown(item.item):{width}}  {item.score:8.3f}  {shown(item.title)}".rstrip())


def _recommend_all(
    output: Path | None,
    users: Path | None,
    k: int,
    filter_seen: bool | None,
    beam: int | None,
    model: Path | None,
    *,
    alone: bool,
) -> None:
    """Write the recommendations for all users; `alone`: no option of the other form is given."""
    from pipeline.errors import UserError
    from pipeline.serving.batch import recommend_all

    if output is None or not alone:
        raise UserError(
            "--all does not go with --user, --history or --json, --users and --beam need it, and it needs --output",
            "the recommendations for all users are one Parquet file",
            "give --all --output recs.parquet, with --users FILE for some users only",
        )
    path, listed = typed_path(output), typed_path(users) if users else None
    count = recommend_all(path, users=listed, k=k, filter_seen=filter_seen, beam=beam, **model_folders(model))
    answer(f"{path}: {count:,} users")


@commands.command(rich_help_panel=PANEL)
def sids(
    item: Annotated[str | None, typer.Option(metavar="ID", help="Raw id of the item.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="ID", help="Raw id: every item of this user's history, oldest first.")
    ] = None,
    history: HistoryOption = None,
    titles: Annotated[int, typer.Option(min=0, help="The most other items that are named for each prefix.")] = 5,
    model: ModelOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object, nothing else.")] = False,
    output: OutputOption = None,
) -> None:
    """Show an item's Semantic ID, and which items share its prefixes.

    Prints the item's codes, then for each prefix the number of items below it and the titles of some of them.

    [dim]Examples:[/dim]

      python -m pipeline sids --item v00017

      python -m pipeline sids --item v00017 --titles 20 --json

      python -m pipeline sids --user u00017
    """
    from dataclasses import asdict

    from pipeline.errors import UserError
    from pipeline.quantize.lookup import look_up_all, sid_text

    if [item, user, history or None].count(None) != 2:
        raise UserError(
            "give one of --item, --user and --history",
            "each names the items that are shown",
            "name one of them, such as --item ID",
        )
    items = [item] if item is not None else _history_items(user, history, model)
    found = look_up_all(items, titles, model=typed_model(model) if model else None)
    if as_json:
        answer(json_text(asdict(found[0]) if item is not None else [asdict(sid) for sid in found], output), output)
    else:
        answer("\n\n".join(map(sid_text, found)), output)


def _history_items(user: str | None, history: list[str] | None, model: Path | None) -> list[str]:
    """Return the raw ids of the items that the trained model sees of a history."""
    from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SPLITS
    from pipeline.evaluate.recommend import model_and_history, names_of

    folders = {"generator": GENERATOR, "reports": REPORTS} | model_folders(model)
    loaded, known = model_and_history(user, typed_entries(history), interactions=INTERACTIONS, splits=SPLITS, **folders)
    return [raw_id for raw_id, _ in names_of(loaded, known.items)]


@commands.command(rich_help_panel=PANEL)
def explain(
    user: Annotated[
        str | None, typer.Option(metavar="ID", help="Raw id; the history is all that the log has of this user.")
    ] = None,
    history: HistoryOption = None,
    model: ModelOption = None,
    views: Annotated[
        bool, typer.Option("--views", help="Instead: each view's share of the scores (evaluate.ranking: fused).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
    output: OutputOption = None,
) -> None:
    """Show how the trained model represents the items of a history (strategies rastp and intrr).

    Prints one line per item, oldest first. With rastp the line has the item's codes, a dash for each token that is
    pruned, and the separator as a bar. With intrr it has the share of each of the item's codes in the item's vector,
    and the other code that has a larger share. Where the model answers by fused views, the recommended items follow,
    with the share of each view in their scores; --views prints these alone.

    [dim]Examples:[/dim]

      python -m pipeline explain --user u00017

      python -m pipeline explain --history v00012,v00007,v00090 --json

      python -m pipeline explain --user u00017 --views
    """
    from pipeline.artifacts import REPORTS
    from pipeline.evaluate.explain import explain as tokens
    from pipeline.evaluate.explain import explanation_text
    from pipeline.evaluate.shares import shares_text, view_shares
    from pipeline.results.ranks import answers_by

    asked: dict[str, Any] = {"user": user, "history": typed_entries(history), **model_folders(model)}
    if views:
        shares = view_shares(**asked)
        answer(json_text([vars(row) for row in shares], output) if as_json else shares_text(shares), output)
        return
    loaded, rows = tokens(**asked)
    if as_json:
        answer(json_text([vars(row) for row in rows], output), output)
        return
    text = explanation_text(loaded, rows)
    if answers_by(asked.get("reports", REPORTS)) == "fused":
        text += "\n\n" + shares_text(view_shares(**asked))
    answer(text, output)
