"""Write a page per paper: its figures, ours in its setting, ours in the best recipe, and one sentence of conclusion.

The sentence follows from the paired intervals alone: `better` is written where the whole interval is above 0, and what
was not run is called missing.
"""

from collections.abc import Iterable, Sequence

from benchmarks.measured import METRIC, Measured, Row, cell, of_raw, references
from benchmarks.papers_figures import BEST, EARLIER, SETTING, Cost, Ours, Paper

HEAD = (
    "| where | arm | seeds | recall@5 | recall@10 | ndcg@10 | without ties | seen dropped, recall@10 | "
    "against its `full`, recall@10 | training | windows/s |\n|---|---|---|---|---|---|---|---|---|---|---|"
)
TITLES = {"amazon-beauty": "Amazon Beauty", "amazon-sports": "Amazon Sports and Outdoors"}


def paper_page(paper: Paper, rows: Sequence[Row], arms: Sequence[Measured]) -> str:
    """Return the page of a paper.

    Args:
        rows: of raw.jsonl.
        arms: those of the campaigns.
    """
    lines = [
        f"# {paper.title}: the paper's figures and ours",
        "",
        "This page sets the paper's figures beside those measured here, for a reader who asks whether its claim holds.",
        f"[The strategy's page]({paper.page}) says what is computed and how the paper is read; [all",
        "tables](../results.md) have commands, commits and hardware, and say what the columns mean. `python -m",
        "benchmarks.results` makes the page from [raw.jsonl](raw.jsonl) and from the results of campaigns.",
        "",
        f"Paper: {paper.source}.",
        "",
        "The paper's rows have other item vectors and other code: compare differences, and within one *where* alone.",
        f"*{SETTING}*: its sizes and rules, and for RASTP its windows, with the budget that the campaign names.",
        f"*{BEST}*: the campaign's settings, which validation on Beauty chose. *{EARLIER}*: rows of older commits,",
        "whose settings of the strategy may be others. *beside*: models without the strategy, on the same test users.",
        "*older engine*: measured with other code of training than today's.",
        *(["", *paper.notes] if paper.notes else []),
    ]
    for data, published in paper.published.items():
        found = [(ours, _arms(ours, data, rows, arms)) for ours in paper.ours[data]]
        lines += ["", f"## {TITLES[data]}", "", f"**{_conclusion(found)}**", "", HEAD]
        lines += [
            f"| {paper.table} | {one.arm} | | {one.recall_5} | {one.recall_10} | {one.ndcg_10} | | | | | |"
            for one in published
        ]
        lines += [_line(ours.where, one) for ours, measured in found for one in measured]
        for one in references(rows, data):
            figures = " | ".join(cell(value) for value in (one.recall_5, one.recall, one.ndcg, one.noties))
            lines.append(f"| beside | {one.name} | {one.seeds} | {figures} | | | | |")
    lines += ["", "## What it saves", "", "| what | the paper | here | commit |", "|---|---|---|---|"]
    lines += [_cost(one, rows) for one in paper.costs]
    return "\n".join(lines) + "\n"


def _arms(ours: Ours, data: str, rows: Sequence[Row], arms: Sequence[Measured]) -> list[Measured]:
    """Return the arms of a part of the table; one that no row and no campaign has is missing."""
    if ours.raw:
        return [of_raw(rows, ours.group, arm, data) for arm in ours.arms]
    listed = {one.arm: one for one in arms if (one.group, one.data) == (ours.group, data)}
    return [listed.get(arm) or Measured(group=ours.group, arm=arm, data=data) for arm in ours.arms]


def _line(where: str, one: Measured) -> str:
    if not one.rows:
        return f"| {where} | {one.arm} | missing | | missing | | | | | {one.time} |"
    figures = " | ".join(cell(one.mean(key)) for key in ("ndcg_at_10", f"noties_{METRIC}", f"seen_dropped_{METRIC}"))
    return (
        f"| {where} | {one.arm} | {one.seeds} | {cell(one.mean('recall_at_5'))} | {one.recall} | {figures} | "
        f"{one.against} | {one.time} |"
    )


WORDS = {
    "better": "better than `full`",
    "not worse": "not worse than `full`, and not better",
    "worse": "worse than `full`",
    "worse, by less than 3%": "worse than `full`, by less than 3%",
    "unclear": "not told from `full`",
}


def _conclusion(found: Iterable[tuple[Ours, list[Measured]]]) -> str:
    """Return one sentence: what the paired intervals say of the arms that count."""
    said = []
    for ours, measured in found:
        for one in measured:
            if one.arm not in ours.counts:
                continue
            if not one.rows:
                said.append(f"in {ours.where} `{one.arm}` is missing")
            elif one.paired is None:
                said.append(f"in {ours.where} `{one.arm}` is {one.unpaired or 'without a `full` beside it'}")
            else:
                seeds = len(one.paired["seeds"])
                interval = "{difference:+.4f}, {low:+.4f} to {high:+.4f}".format(**one.paired)
                many = f"{seeds} seeds" if seeds > 1 else "one seed, so that the interval covers users alone"
                said.append(f"in {ours.where} `{one.arm}` is {WORDS[one.paired['verdict']]} ({interval}; {many})")
    text = "; ".join(said)
    return text[:1].upper() + text[1:] + "."


def _cost(one: Cost, rows: Sequence[Row]) -> str:
    kind, name, *histories = one.row
    found = [
        row
        for row in rows
        if (row.get("kind"), row.get("row")) == (kind, name) and row.get("histories") in (None, *histories)
    ]
    if not found:
        return f"| {one.claim} | {one.published} | missing | |"
    return f"| {one.claim} | {one.published} | {one.shown.format(**found[-1])} | {found[-1]['commit']} |"
