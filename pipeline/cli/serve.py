"""Commands that ask a trained model for items, explain its view of a history, or look up an item's Semantic ID."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.printing import say, shown

if TYPE_CHECKING:
    from pipeline.evaluate.typed_history import Typed

PANEL = "Serve"
commands = typer.Typer()
HistoryOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID,ID,...",
        show_default=False,
        help="Raw item ids, oldest first; ID@TIME adds the time. Repeat as needed; an id that holds a comma stands in "
        "double quotes or alone.",
    ),
]


@commands.command(rich_help_panel=PANEL)
def recommend(
    user: Annotated[str | None, typer.Option(help="Raw id; the history is all that the log has of this user.")] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
) -> None:
    """Ask the trained model for the next items.

    Prints raw id, score (log-probability of the Semantic ID) and title. The model sees all items of --history; of a
    --user it sees what it sees in evaluation (skipgr.at_eval). An item of --history may have its time behind an @, in
    any form that a log may have; a model that reads times (hstu) takes equal steps where there is none.

    [dim]Examples:[/dim]

      python -m pipeline recommend --user u00017 -k 5

      python -m pipeline recommend --history v00012,v00007,v00090

      python -m pipeline recommend --history '"tea, green"' --history v00012

      python -m pipeline recommend --history v00012@2024-09-05T12:32:27Z,v00007@2024-09-06T08:00:00Z
    """
    from pipeline.evaluate.recommend import recommend as best

    items = best(user=user, history=_typed(history), k=k, filter_seen=filter_seen)
    if as_json:
        say(json.dumps([vars(item) for item in items], indent=2))
        return
    width = max(len(shown(item.item)) for item in items)
    for rank, item in enumerate(items, start=1):
        say(f"{rank:>3}  {shown(item.item):{width}}  {item.score:8.3f}  {shown(item.title)}".rstrip())


@commands.command(rich_help_panel=PANEL)
def sids(
    item: Annotated[str, typer.Option(help="Raw id of the item.")],
    titles: Annotated[int, typer.Option(min=0, help="The most other items that are named for each prefix.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object, nothing else.")] = False,
) -> None:
    """Show an item's Semantic ID, and which items share its prefixes.

    Prints the item's codes, then for each prefix the number of items below it and the titles of some of them.

    [dim]Examples:[/dim]

      python -m pipeline sids --item v00017

      python -m pipeline sids --item v00017 --titles 20 --json
    """
    from dataclasses import asdict

    from pipeline.quantize.lookup import look_up, sid_text

    found = look_up(item, titles)
    say(json.dumps(asdict(found), indent=2) if as_json else sid_text(found))


@commands.command(rich_help_panel=PANEL)
def explain(
    user: Annotated[str | None, typer.Option(help="Raw id; the history is all that the log has of this user.")] = None,
    history: HistoryOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON list, nothing else.")] = False,
) -> None:
    """Show how the trained model represents the items of a history (strategies rastp and intrr).

    Prints one line per item, oldest first. With rastp the line has the item's codes, a dash for each token that is
    pruned, and the separator as a bar. With intrr it has the share of each of the item's codes in the item's vector,
    and the other code that has a larger share.

    [dim]Examples:[/dim]

      python -m pipeline explain --user u00017

      python -m pipeline explain --history v00012,v00007,v00090 --json
    """
    from pipeline.evaluate.explain import explain as tokens
    from pipeline.evaluate.explain import explanation_text

    loaded, rows = tokens(user=user, history=_typed(history))
    say(json.dumps([vars(row) for row in rows], indent=2) if as_json else explanation_text(loaded, rows))


def _typed(history: list[str] | None) -> "list[Typed] | None":
    """Return the texts of all options --history; None if there is none."""
    from pipeline.evaluate.typed_history import Typed

    return [Typed(text) for text in history] if history else None
