"""Commands that ask a trained model, or look one of its items up."""

import json
from typing import Annotated

import typer

PANEL = "Serve"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def recommend(
    user: Annotated[str | None, typer.Option(help="Raw id: go on from all that the log has of this user.")] = None,
    history: Annotated[str | None, typer.Option(metavar="ID,ID,...", help="Raw item ids, oldest first.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    filter_seen: Annotated[bool, typer.Option("--filter-seen", help="Leave out items of the history.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
) -> None:
    """Ask the trained model for the next items.

    Prints raw id, score (log-probability of the Semantic ID) and title. A list of items is seen whole, a user as
    in evaluation (skipgr.at_eval).

    [dim]Examples:[/dim]

      python -m pipeline recommend --user u00017 -k 5

      python -m pipeline recommend --history v00012,v00007,v00090
    """
    from pipeline.evaluate.recommend import recommend as best

    items = best(user=user, history=_split(history), k=k, filter_seen=filter_seen)
    if as_json:
        print(json.dumps([vars(item) for item in items], indent=2))
        return
    width = max(len(item.item) for item in items)
    for rank, item in enumerate(items, start=1):
        print(f"{rank:>3}  {item.item:{width}}  {item.score:8.3f}  {item.title}".rstrip())


@commands.command(rich_help_panel=PANEL)
def sids(
    item: Annotated[str, typer.Option(help="Raw id of the item.")],
    titles: Annotated[int, typer.Option(min=0, help="Other items that each prefix names, at most.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object, nothing else.")] = False,
) -> None:
    """Show an item's Semantic ID, and which items share its beginning.

    Its codes, then for each prefix how many items stand below it and the titles of some.

    [dim]Examples:[/dim]

      python -m pipeline sids --item v00017

      python -m pipeline sids --item v00017 --titles 20 --json
    """
    from dataclasses import asdict

    from pipeline.quantize.lookup import look_up, sid_text

    found = look_up(item, titles)
    print(json.dumps(asdict(found), indent=2) if as_json else sid_text(found))


@commands.command(rich_help_panel=PANEL)
def explain(
    user: Annotated[str | None, typer.Option(help="Raw id: all that the log has of this user.")] = None,
    history: Annotated[str | None, typer.Option(metavar="ID,ID,...", help="Raw item ids, oldest first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
) -> None:
    """Show what the trained model makes of the items of a history (strategies rastp and intrr).

    One line per item, oldest first. rastp: its codes, a dash for each that is dropped, the separator as a bar. intrr:
    how much of each of its codes is in the item's vector, and which other code has more.

    [dim]Examples:[/dim]

      python -m pipeline explain --user u00017

      python -m pipeline explain --history v00012,v00007,v00090 --json
    """
    from pipeline.evaluate.explain import explain as tokens
    from pipeline.evaluate.explain import explanation_text

    loaded, rows = tokens(user=user, history=_split(history))
    print(json.dumps([vars(row) for row in rows], indent=2) if as_json else explanation_text(loaded, rows))


def _split(history: str | None) -> list[str] | None:
    return history.split(",") if history else None
